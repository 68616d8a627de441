"""Compiled programs kept on disk, so that the second run of a command starts at once."""

import os
from pathlib import Path

import jax


def directory() -> Path:
    """`$XDG_CACHE_HOME/jtok/xla`, or `~/.cache/jtok/xla`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jtok" / "xla"


def enable() -> None:
    """Turns JAX's persistent compilation cache on, unless a directory has been chosen already.

    JAX's own settings win: `JAX_COMPILATION_CACHE_DIR` moves it, `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    """
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(directory()))
