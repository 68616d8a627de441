"""Runs one unit of an experiment: `python -m jtok.launch.unit WORKDIR [--output=FILE] -- MODULE [ARGUMENT ...]`.

The module runs in this process, so signals reach it and nothing is left behind when it is killed. Its outcome
is written to WORKDIR when it ends: `done.json`, or `failed.json` with the exit code. Neither is written for a unit
that was preempted (exit code 75) or killed: the same command resumes. A unit that is done is not run again.

With --output what the module prints goes to that file in WORKDIR, which is there once the module has succeeded.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jtok.files import write_text

#: `EX_TEMPFAIL` of sysexits.h, what `jtok train` exits with after it was asked to stop and has saved.
PREEMPTED = 75
DONE, FAILED = "done.json", "failed.json"


def read_done(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """What `done.json` holds: {"command", "seconds"}; None where the unit is not done."""
    try:
        return json.loads((Path(workdir) / DONE).read_text())
    except (OSError, ValueError):
        return None


def run_module(words: Sequence[str]) -> int:
    """Runs a module as `python -m` does and returns its exit code.

    SIGTERM that comes before the module installs its own handler is a preemption too: it has begun nothing that a new
    start does not begin again.
    """
    before, sys.argv = sys.argv, list(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED))
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        return 0
    except SystemExit as leave:
        if leave.code is None or isinstance(leave.code, int):
            return leave.code or 0
        print(leave.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.argv = before


def main(argv: Sequence[str]) -> int:
    """Runs the unit and returns the exit code of its module."""
    options, words = list(argv[: argv.index("--")]), list(argv[argv.index("--") + 1 :])
    workdir = Path(options[0])
    output = options[1].removeprefix("--output=") if len(options) > 1 else ""
    if read_done(workdir):
        print(f"{workdir} is done already")
        return 0
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / FAILED).unlink(missing_ok=True)
    begin = time.time()
    with contextlib.ExitStack() as stack:
        if output:
            beside = stack.enter_context(open(workdir / f".{output}.tmp", "w"))
            stack.enter_context(contextlib.redirect_stdout(beside))
        code = run_module(words)
    if output and code == 0:
        os.replace(workdir / f".{output}.tmp", workdir / output)
    if code == 0:
        write_text(workdir / DONE, json.dumps({"command": words, "seconds": time.time() - begin}, indent=2))
    elif code != PREEMPTED:
        write_text(workdir / FAILED, json.dumps({"command": words, "code": code}, indent=2))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
