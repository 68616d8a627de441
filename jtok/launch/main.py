"""The launcher's command: `python experiments/FILE.py`, its flags, and the platform that they name."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jtok.errors import UserError
from jtok.launch.experiment import PLATFORMS, check_workdir, conclude, read_experiment
from jtok.launch.report import make_report
from jtok.launch.unit import PREEMPTED
from jtok.launch.units import Unit, check_flags, finished, make_units


def main(file: Mapping[str, Any], argv: Sequence[str] | None = None) -> int:
    """Runs the experiment whose globals are `file` and returns the exit code.

    0: all units are done; 1: some failed; 2: bad input, in one sentence on stderr, before anything starts; 75: stopped
    by SIGTERM; 130: by Ctrl-C. After each but 2, the same command resumes.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = Path(file["__file__"]).stem
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(PREEMPTED))
    try:
        return _main(file, argv)
    except UserError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command resumes", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _main(file: Mapping[str, Any], argv: Sequence[str]) -> int:
    args, extra = _parse(file, argv)
    experiment = read_experiment(file, small=args.small)
    root = os.path.abspath(args.workdir) if args.workdir else str(experiment.root / "runs" / experiment.name)
    os.chdir(experiment.root)
    config = args.config or experiment.config

    def units_in(root: str) -> list[Unit]:
        sweep, command = experiment.sweep(), experiment.command
        return make_units(sweep, command, config, root, output=experiment.output, extra=extra)

    units = units_in(root)
    if args.only_report:
        make_report(experiment.report, finished(units), Path(root))
        return 0
    _check(config, units)
    if args.platform != "local":
        from jtok.launch.platforms import run_elsewhere

        return run_elsewhere(experiment, units_in, Path(root), args)
    check_workdir(root)
    finished(units)  # one that another command made is reported before any starts
    from jtok.launch.local import run_local

    print(experiment.question, file=sys.stderr)
    jobs = run_local(experiment.name, units, args.max_parallel)
    return conclude(experiment, units, Path(root), [job.unit.name for job in jobs if job.state == "failed"])


def _check(config: str, units: Sequence[Unit]) -> None:
    path = config.partition(":")[0]
    if not os.path.isfile(path):
        raise UserError(f"there is no config file {path}: give the path of a Python file with get_config")
    check_flags(units)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; see --help")


def _parse(file: Mapping[str, Any], argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own flags, and those that go to all units."""
    parser = _Parser(description=file.get("__doc__"), allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--platform", default="local", help=f"{', '.join(PLATFORMS)} (default: local)")
    parser.add_argument("--max_parallel", type=int, default=1, help="units at once (default: 1)")
    parser.add_argument("--small", action="store_true", help="the small setting, in minutes on two cores")
    parser.add_argument("--workdir", default="", help="directory of all units (default: runs/NAME)")
    parser.add_argument("--config", default="", help="another config than the experiment's, FILE.py[:ARGUMENT]")
    parser.add_argument("--only_report", action="store_true", help="report what is done, and start nothing")
    cloud = parser.add_argument_group("in a cloud")
    cloud.add_argument("--of", default="", help="the one platform whose commands dry_run prints (default: all)")
    cloud.add_argument("--project", default="", help="Google Cloud project")
    cloud.add_argument("--zone", default="", help="such as us-west4-a")
    cloud.add_argument("--tpu", default="v5e-8", help="TPU of each unit, such as v5e-8 (default) or v6e-16")
    cloud.add_argument("--bucket", default="", help="gs://NAME[/FOLDER], where code and results go")
    cloud.add_argument("--image", default="", help="container image with jtok (vertex, gke)")
    cloud.add_argument("--spot", action="store_true", help="spot capacity: cheaper, may be taken away")
    args, extra = parser.parse_known_args(list(argv))
    if args.platform not in PLATFORMS:
        from jtok.flags import nearest

        hint = nearest(args.platform, PLATFORMS, prefix="") or ""
        raise UserError(f"there is no platform '{args.platform}'{hint}; choose one of {', '.join(PLATFORMS)}")
    if args.max_parallel < 1:
        raise UserError(f"--max_parallel={args.max_parallel} starts nothing: it must be at least 1")
    for flag in extra:
        if not flag.startswith("--config."):
            raise UserError(f"unknown flag {flag}; see --help (fields of the config are --config.FIELD=VALUE)")
    return args, extra
