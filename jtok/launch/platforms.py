"""Where else than here: XManager on this machine, Cloud TPU VMs, Vertex and GKE, or on paper (`dry_run`)."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from jtok.errors import UserError
from jtok.launch import commands, xmanager_
from jtok.launch.board import FAILED as JOB_FAILED
from jtok.launch.board import Job
from jtok.launch.commands import Cloud
from jtok.launch.experiment import Experiment, check_workdir, conclude
from jtok.launch.local import LINES
from jtok.launch.tpus import find_tpu
from jtok.launch.unit import PREEMPTED
from jtok.launch.units import Unit, finished

CLOUDS = ("tpu_vm", "vertex", "gke")
UnitsIn = Callable[[str], list[Unit]]


def run_elsewhere(experiment: Experiment, units_in: UnitsIn, root: Path, args: argparse.Namespace) -> int:
    """Runs an experiment on `args.platform` and returns the exit code. Raises UserError before anything starts."""
    if args.platform == "dry_run":
        print(dry_run(experiment, units_in, root, args))
        return 0
    if args.platform == "xm_local":
        xmanager_.require()
        check_workdir(str(root))
        return _run_xm_local(experiment, units_in(str(root)), root, args.max_parallel)
    cloud = _cloud(args, args.platform)
    check_tools(args.platform)
    xmanager_.require()
    if args.platform == "vertex":
        xmanager_.prepare_vertex(cloud)
    check_workdir(str(root))
    return _run_cloud(experiment, units_in, root, cloud, args)


def _run_xm_local(experiment: Experiment, units: Sequence[Unit], root: Path, max_parallel: int) -> int:
    todo = [unit for unit in units if not unit.done()]
    scripts = {}
    for unit in todo:
        Path(unit.workdir).mkdir(parents=True, exist_ok=True)
        run = f"{shlex.join([sys.executable, *unit.arguments()])} >> {shlex.quote(unit.workdir)}/log.txt 2>&1"
        scripts[unit.name] = f"until {run}; do [ $? -eq {PREEMPTED} ] || exit 1; done"
    if scripts:
        xmanager_.run_scripts(experiment.name, scripts, max_parallel)
    failed = [unit for unit in todo if not unit.done()]
    for unit in failed:
        job = Job(unit, JOB_FAILED)
        lines = "\n".join(f"    {line}" for line in job.last_lines(LINES))
        print(f"{unit.name}: failed; the end of {job.log}:\n{lines}", file=sys.stderr)
    return conclude(experiment, units, root, [unit.name for unit in failed])


def _run_cloud(experiment: Experiment, units_in: UnitsIn, root: Path, cloud: Cloud, args: argparse.Namespace) -> int:
    """Sends the code, runs what is not done, and copies the results from the bucket to `root`."""
    directory = f"{cloud.mounted}/{experiment.name}"
    fetch = commands.fetch_results(cloud, directory, str(root))
    _call(fetch, check=False)  # what an earlier sweep has left; nothing yet the first time
    done = finished(_here(units_in(directory), root))
    todo = [unit for unit in units_in(directory) if unit.name not in done]
    if args.platform == "tpu_vm" and todo:
        with tempfile.TemporaryDirectory() as folder:
            _call(commands.upload_code(cloud, f"{folder}/code.tar.gz"))
    if args.platform == "vertex" and todo:
        xmanager_.run_vertex(experiment.name, todo, cloud, args.max_parallel)
    elif todo:
        script = commands.tpu_vm_script if args.platform == "tpu_vm" else commands.gke_script
        scripts = {unit.name: script(experiment.name, unit, cloud) for unit in todo}
        xmanager_.run_scripts(experiment.name, scripts, args.max_parallel)
    _call(fetch)
    units = _here(units_in(directory), root)
    return conclude(experiment, units, root, [unit.name for unit in units if not unit.done()])


def _here(units: Sequence[Unit], root: Path) -> list[Unit]:
    """Units of a bucket by their copies in `root`: their commands name the bucket still."""
    return [Unit(unit.name, str(root / unit.name), unit.words, unit.output) for unit in units]


def _call(steps: Sequence[commands.Words], *, check: bool = True) -> None:
    for words in steps:
        result = subprocess.run(words, capture_output=True, text=True)
        if check and result.returncode:
            last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"`{shlex.join(words)}` failed: {last}")


def _cloud(args: argparse.Namespace, platform: str, *, placeholders: bool = False) -> Cloud:
    """The flags that say where. Raises UserError for one that is missing or does not fit."""
    tpu = find_tpu(args.tpu, platform)
    needed = ["project", "zone", "bucket", *(["image"] if platform != "tpu_vm" else [])]
    values = {name: getattr(args, name) or (name.upper() if placeholders else "") for name in needed}
    if placeholders and not args.bucket:
        values["bucket"] = "gs://BUCKET"
    missing = [f"--{name}" for name in needed if not values[name]]
    if missing:
        raise UserError(f"--platform={platform} needs {', '.join(missing)}; see --help")
    if not values["bucket"].removeprefix("gs://") or not values["bucket"].startswith("gs://"):
        raise UserError(f"--bucket={values['bucket']} is no bucket: give gs://NAME or gs://NAME/FOLDER")
    return Cloud(tpu=tpu, spot=args.spot, **values)


def check_tools(platform: str) -> None:
    """Raises UserError where tools of a cloud are missing, nobody is logged in, or no cluster is chosen."""
    for tool in ("gcloud", *(["kubectl"] if platform == "gke" else [])):
        if shutil.which(tool) is None:
            raise UserError(f"--platform={platform} needs {tool}, which is not installed: install the Google Cloud CLI")
    words = ["gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)"]
    if not subprocess.run(words, capture_output=True, text=True).stdout.strip():
        raise UserError("gcloud has no active account: run `gcloud auth login` first")
    if platform == "gke" and subprocess.run(["kubectl", "config", "current-context"], capture_output=True).returncode:
        raise UserError("kubectl points to no cluster: run `gcloud container clusters get-credentials NAME` first")


def dry_run(experiment: Experiment, units_in: UnitsIn, root: Path, args: argparse.Namespace) -> str:
    """The commands of one platform (`args.of`) or all, as text for a shell; what is not given is shown in capitals."""
    platforms = ("local", *CLOUDS) if not args.of else (args.of,)
    if args.of and args.of not in ("local", *CLOUDS):
        raise UserError(f"--of={args.of} has no commands to print: choose local, {', '.join(CLOUDS)}")
    parts = []
    for platform in platforms:
        if platform == "local":
            lines = [shlex.join(["python", *unit.arguments()]) for unit in units_in(str(root))]
        elif platform == "vertex" and not args.of and not find_tpu(args.tpu, "tpu_vm").vertex:
            lines = [f"# has no {args.tpu}: it knows v2 and v3 only"]
        else:
            lines = _cloud_lines(experiment, units_in, root, _cloud(args, platform, placeholders=True), platform)
        parts.append("\n".join([f"# {platform}", *lines]))
    return "\n\n".join(parts)


def _cloud_lines(experiment: Experiment, units_in: UnitsIn, root: Path, cloud: Cloud, platform: str) -> list[str]:
    directory = f"{cloud.mounted}/{experiment.name}"
    lines = [shlex.join(w) for w in commands.upload_code(cloud, "code.tar.gz")] if platform == "tpu_vm" else []
    for unit in units_in(directory):
        if platform == "tpu_vm":
            lines += [shlex.join(words) for words in commands.tpu_vm_steps(experiment.name, unit, cloud).values()]
        elif platform == "gke":
            lines.append(f"( {commands.gke_script(experiment.name, unit, cloud)})")
        else:
            lines.append(shlex.join(commands.vertex_command(experiment.name, unit, cloud)))
    return [*lines, *(shlex.join(words) for words in commands.fetch_results(cloud, directory, str(root)))]
