"""Experiments: a question, a config, a sweep over it and a report, in one file that knows nothing of where it runs.

    '''How much accuracy does each method lose at equal cost?'''

    CONFIG = "configs/vit/imagenet_sweep.py"          # of the full setting; --config=FILE takes another
    COMMAND = ("jtok", "sweep")                       # what runs a unit, as after `python -m`; this is jtok train
    SMALL = {"CONFIG": "configs/vit/sweep.py:demo"}   # what is different with --small; may be left out

    def sweep(small):                                 # or sweep(), without SMALL
        yield "tome", {"sweep.methods": ("tome",)}    # a unit's name, and the fields of the config that it changes

    def report(workdirs):                             # {name: directory} of the units that are done
        return launch.Report(tables, figure)

    if __name__ == "__main__":
        sys.exit(launch.main(globals()))

Then `python experiments/FILE.py --platform=local --max_parallel=2`. A unit is `python -m COMMAND --config=CONFIG
--config.FIELD=VALUE ... --workdir=ROOT/NAME`; flags `--config.FIELD=VALUE` on the command line go to all of them. A
name that begins with -- is a flag of the command itself. With `OUTPUT = "FILE"` a unit gets no --workdir, and what it
prints goes to that file of its directory.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jtok.errors import UserError
from jtok.launch.report import Report, make_report
from jtok.launch.units import Unit, finished

PLATFORMS = ("local", "xm_local", "tpu_vm", "vertex", "gke", "dry_run")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What an experiment's file says, in the setting that was asked for."""

    name: str
    question: str
    config: str
    command: tuple[str, ...]
    output: str
    sweep: Callable[[], Iterable[tuple[str, Mapping[str, Any]]]]
    report: Callable[[Mapping[str, Path]], Report]
    root: Path  # of the repository: paths of configs begin there


def read_experiment(file: Mapping[str, Any], *, small: bool = False) -> Experiment:
    """Reads the globals of an experiment's file. Raises UserError for what is missing there."""
    path = Path(file["__file__"]).resolve()
    for name in ("CONFIG", "sweep", "report"):
        if name not in file:
            raise UserError(f"{path.name} has no {name}: an experiment has CONFIG, sweep() and report(workdirs).")
    if not (file.get("__doc__") or "").strip():
        raise UserError(f"{path.name} states no question: begin it with a docstring that does.")
    if small and "SMALL" not in file:
        raise UserError(f"{path.name} has no small setting: leave --small out.")
    setting = {**file, **(file["SMALL"] if small else {})}
    sweep = file["sweep"]
    return Experiment(
        name=path.stem + ("_small" if small else ""),
        question=file["__doc__"].strip().splitlines()[0],
        config=setting["CONFIG"],
        command=tuple(setting.get("COMMAND", ("jtok", "train"))),
        output=setting.get("OUTPUT", ""),
        sweep=(lambda: sweep(small)) if "SMALL" in file else sweep,
        report=file["report"],
        root=path.parent.parent,
    )


def conclude(experiment: Experiment, units: Sequence[Unit], root: Path, failed: Sequence[str]) -> int:
    """Reports what is done, and names what failed."""
    done = finished(units)
    if done:
        make_report(experiment.report, done, root)
    if failed:
        text = f"{len(failed)} of {len(units)} units failed ({', '.join(failed)}): the same command runs only those"
        print(f"{experiment.name}: {text}", file=sys.stderr)
    return 1 if failed else 0


def check_workdir(root: str) -> None:
    """Makes a directory. Raises UserError if nothing can be written there."""
    try:
        os.makedirs(root, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise UserError(f"cannot write to the directory {root}: choose another --workdir ({error.strerror})") from None
