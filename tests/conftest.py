"""Settings for the whole suite: the CPU unless told otherwise, and one fixture for exact products."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports jax
# Tests compile hundreds of tiny programs and run each once or twice: compile them quickly rather than well.
os.environ.setdefault("XLA_FLAGS", "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def highest_precision():
    """Float32 products at full precision, as the parity tolerances assume."""
    with jax.default_matmul_precision("highest"):
        yield
