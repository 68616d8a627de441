"""Entry point of the `jtok` command."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from jtok import flags

FILES = ("list", "plan", "ask", "tokenize", "detokenize", "train", "calibrate", "evaluate", "sweep", "patterns", "show")
FILES += ("compile", "export")
FILES += ("bench_reducers", "bench_model", "bench_vlm", "bench_kernels", "bench_tokenizers")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 2 for bad input, 75 after a polite stop, 130 when interrupted."""
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.CRITICAL)  # notes about accelerators that are not there
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = [importlib.import_module(f"jtok.commands.{name}_").COMMAND for name in FILES]
    if " ".join(argv[:2]) in {command.name for command in commands}:
        argv[:2] = [" ".join(argv[:2])]  # commands of two words: bench reducers
    return flags.main(commands, argv)
