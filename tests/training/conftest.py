"""Compiled programs of these tests go to a folder that is thrown away, not to the user's cache."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def private_compilation_cache(tmp_path_factory):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    yield
    jax.config.update("jax_compilation_cache_dir", before)
