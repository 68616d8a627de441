"""What is exported: a tower, its plan, and the facts known of both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from jtok.checkpoints.safetensor_files import open_weights, read_json
from jtok.checkpoints.shipped import resolve
from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.models.towers.load import load_vit
from jtok.models.towers.vit import ViTConfig
from jtok.plan import Plan
from jtok.training.weights import load_reducer


@dataclasses.dataclass(frozen=True)
class Source:
    """A tower with its parameters, its plan, and facts for the card.

    mean, std: with which bytes were normalised in training, None where the weights do not record it.
    """

    name: str
    config: ViTConfig
    params: dict[str, Any]
    plan: Plan
    method: dict[str, Any]
    data: dict[str, Any] | None
    weights: dict[str, Any]

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        if not self.data or "mean" not in self.data:
            return None
        return tuple(self.data["mean"]), tuple(self.data["std"])


def read(
    weights: str,
    method: str = "none",
    keep: float | None = None,
    options: Mapping[str, Any] | None = None,
    reducer: str = "",
) -> Source:
    """A tower from a file of jtok, a Hugging Face directory, the directory of a run, or "shipped"; and a plan for it.

    reducer: file of the plan's learned parameters. Raises UserError for weights that are not whole, for a run without a
    finished checkpoint, and for a plan that does not fit, or has something to learn and no file.
    """
    path = Path(resolve(weights))
    if (path / "checkpoints").is_dir():
        config, params, data, facts, learned = _from_run(path)
    else:
        config, params = load_vit(path)
        checkpoint = open_weights(path)
        data = json.loads(checkpoint.metadata["jtok.data"]) if "jtok.data" in checkpoint.metadata else None
        facts, learned = {"sha256": digests(checkpoint.files.values())}, {}
    plan = catalogue.make_plan(method, config.target(), keep, **(options or {}))
    if reducer:
        plan = plan.with_params(load_reducer(reducer, plan), trained=True)
    elif plan.params():
        same = jax.tree.map(lambda a: a.shape, learned) == jax.tree.map(lambda a: a.shape, plan.params())
        if not same:
            raise UserError(f"the method '{method}' is learned: add --reducer=FILE with what it learned.")
        plan = plan.with_params(learned, trained=True)
    how = {"method": method, "keep": keep, "options": dict(options or {})}
    return Source(weights, config, params, plan, how, data, {"path": path.name, **facts})


def _from_run(path: Path) -> tuple[ViTConfig, dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(tower, its parameters, data, facts, the reducers' parameters) of the newest finished checkpoint of a run."""
    from jtok.training.checkpoint import load_params
    from jtok.training.tasks.classify import Classify

    config = ml_collections.ConfigDict(read_json(path / "config.json"))
    if config.get("task") != "classify":
        raise UserError(f"'{path}' is a run of the task '{config.get('task')}': give the run of a classifier.")
    config.weights = ""  # the checkpoint has the numbers
    task = Classify(config)
    params, step = load_params(path, task.init(jax.random.key(0)))
    return task.model, params["model"], config.data.to_dict(), {"step": step}, params["plan"]


def digests(files: Iterable[str | os.PathLike]) -> dict[str, str]:
    """SHA-256 of files, by their names."""
    hashes = {}
    for file in sorted(set(files)):
        with open(file, "rb") as opened:
            hashes[os.path.basename(file)] = hashlib.file_digest(opened, "sha256").hexdigest()
    return hashes
