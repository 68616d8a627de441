"""Settings for the whole suite: the CPU unless told otherwise, exact products, and `--method=NAME` for one method."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before anything imports jax
# Tests compile hundreds of tiny programs and run each once or twice: compile them quickly rather than well.
os.environ.setdefault("XLA_FLAGS", "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0")

import difflib  # noqa: E402
import gc  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

#: Where shapes are the point, annotations are checked at every call, while tracing. Not in methods, which refuse bad
#: options with sentences of their own, nor in dataclasses that are pytrees (`Tokens`, `Cache`): jax rebuilds those
#: around things that are no arrays.
TYPED = ("pruner", "wrappers", "ops.score", "ops.select", "ops.merge", "ops.cluster")
install_import_hook([f"jtok.{name}" for name in TYPED], "beartype.beartype")

#: Folders whose tests go over the catalogue or bear the name of a method; `--method` collects nothing else.
OF_METHODS = ("methods", "parity")


#: Mappings of memory, of which Linux allows a process 65,530; every compiled program takes some.
MOST_MAPPINGS = 30_000


def pytest_runtest_teardown(item, nextitem):
    """Between files: frees compiled programs before there are too many, since XLA crashes without a word then."""
    if nextitem is not None and nextitem.path == item.path:
        return
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


def pytest_addoption(parser):
    parser.addoption(
        "--method", metavar="NAME", help="one method: its own files, its rows of the catalogue's tests, its vectors"
    )


def pytest_configure(config):
    name = config.getoption("--method")
    if name is None:
        return
    from jtok.methods import catalogue  # only then, since it imports every method

    if name not in catalogue.methods():
        near = difflib.get_close_matches(name, catalogue.methods(), 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`jtok list` shows them all."
        raise pytest.UsageError(f"--method: there is no method '{name}'; {hint}")


def pytest_ignore_collect(collection_path, config):
    """Under `--method`, only the folders of methods: importing the others takes longer than one method's tests."""
    if config.getoption("--method") is None:
        return None
    tests = Path(__file__).parent
    parts = collection_path.relative_to(tests).parts if collection_path.is_relative_to(tests) else ()
    return True if parts and parts[0] not in (*OF_METHODS, "conftest.py") else None


def pytest_collection_modifyitems(config, items):
    name = config.getoption("--method")
    if name is None:
        return
    mine = [item for item in items if _is_of(item, name)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
    items[:] = mine


def _is_of(item: pytest.Item, name: str) -> bool:
    """Whether a test is in a file named after the method, or is the method's row of a parametrised test."""
    file = f"test_{name.replace('-', '_')}"
    if item.path.stem == file or item.path.stem.startswith(f"{file}_"):
        return True
    params = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(param == name or getattr(param, "slug", None) == name for param in params)


@pytest.fixture
def highest_precision():
    """Float32 products at full precision, as the parity tolerances assume."""
    with jax.default_matmul_precision("highest"):
        yield
