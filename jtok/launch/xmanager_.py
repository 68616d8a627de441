"""Units through XManager (`pip install jtok[launch]`), which is imported here and nowhere else, when it is used.

XManager starts all that it is given at once and says of a failed unit only that it failed; how many run at once, and
what became of each, is therefore looked after here. What a unit left in its directory decides whether it is done.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jtok.errors import UserError
from jtok.launch.commands import Cloud
from jtok.launch.units import Unit


def require() -> tuple[Any, Any]:
    """The modules `xm` and `xm_local`. Raises UserError where XManager is not installed."""
    try:
        from xmanager import xm, xm_local
    except ImportError as error:
        raise UserError(
            f"this platform needs XManager, which cannot be imported ({error}): pip install jtok[launch], "
            "or use --platform=local"
        ) from None
    return xm, xm_local


def run_scripts(title: str, scripts: Mapping[str, str], max_parallel: int) -> set[str]:
    """Runs shell scripts, by name, as processes that XManager starts here; returns the names of those that failed."""
    return _run(title, list(scripts), max_parallel, lambda experiment, name: _local_job(experiment, scripts[name]))


def _local_job(experiment: Any, script: str) -> Any:
    xm, xm_local = require()
    spec = xm.binary(path="/bin/sh", args=["-c", script], executor_spec=xm_local.Local.Spec())
    (executable,) = experiment.package([spec])
    return xm.Job(executable, xm_local.Local())


def prepare_vertex(cloud: Cloud) -> None:
    """Tells XManager the project, region and bucket, which it takes from its environment and a default otherwise.

    Raises UserError where there are no credentials of the kind that its libraries use.
    """
    require()
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from xmanager.cloud import vertex

    os.environ["GOOGLE_CLOUD_PROJECT"] = cloud.project
    os.environ["GOOGLE_CLOUD_BUCKET_NAME"] = cloud.bucket_name
    try:
        google.auth.default()
    except DefaultCredentialsError:
        raise UserError(
            "there are no credentials for XManager's libraries: run `gcloud auth application-default login` first"
        ) from None
    vertex.set_default_client(vertex.Client(project=cloud.project, location=cloud.region))


def run_vertex(title: str, units: Sequence[Unit], cloud: Cloud, max_parallel: int) -> set[str]:
    """Runs units as Vertex custom jobs of the image; returns the names of those that failed."""
    xm, xm_local = require()
    by_name = {unit.name: unit for unit in units}
    needs = xm.JobRequirements(**{cloud.tpu.vertex.lower(): cloud.tpu.size})

    def job(experiment: Any, name: str) -> Any:
        spec = xm.container(image_path=cloud.image, executor_spec=xm_local.Vertex.Spec())
        (executable,) = experiment.package([spec])
        arguments = xm.SequentialArgs.from_collection(by_name[name].arguments())
        return xm.Job(executable, xm_local.Vertex(requirements=needs), args=arguments)

    return _run(title, list(by_name), max_parallel, job)


def _run(title: str, names: Sequence[str], max_parallel: int, job: Callable[[Any, str], Any]) -> set[str]:
    _, xm_local = require()
    _parse_flags()
    failed: set[str] = set()

    async def one(experiment: Any, name: str, free: asyncio.Semaphore) -> None:
        async with free:
            print(f"{name}: running", file=sys.stderr)
            try:
                unit = await experiment.add(job(experiment, name))
                await unit.wait_until_complete()
            except Exception as error:  # XManager's own, of several kinds
                failed.add(name)
                print(f"{name}: failed ({type(error).__name__})", file=sys.stderr)
            else:
                print(f"{name}: ended", file=sys.stderr)

    async def everything() -> None:
        free = asyncio.Semaphore(max_parallel)
        async with xm_local.create_experiment(experiment_title=title) as experiment:
            await asyncio.gather(*(one(experiment, name, free) for name in names))

    try:
        asyncio.run(everything())
    except Exception:
        if not failed:  # what failed is raised once more when the experiment is left
            raise
    return failed


def _parse_flags() -> None:
    """XManager reads absl flags, which somebody must have parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])
