"""Weights that come in and go out of a run: towers, and the learned reducers of a plan."""

from __future__ import annotations

import importlib.resources
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok.errors import UserError
from jtok.models.load import check_names, flatten, load_params, save_params, wrong_shape
from jtok.models.safetensor_files import open_weights, write_safetensors
from jtok.plan import Plan

if TYPE_CHECKING:
    from jtok.training.classify import Classify

#: `config.weights` of the small tower that comes with jtok.
SHIPPED = "shipped"


def resolve(weights: str) -> str:
    """Path of `config.weights`; "shipped" is the tower inside the package."""
    if weights != SHIPPED:
        return weights
    return str(importlib.resources.files("jtok") / "assets" / "scenes.safetensors")


def load_tower(weights: str, config, like: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a tower from `config.weights` (see `jtok.models.load`)."""
    return load_params(resolve(weights), config, like)


def export(task: Classify, params: Mapping[str, Any], path: str | os.PathLike, storage: str = "float32") -> None:
    """Writes the tower to `path`; where the plan has learned reducers, those go to a file beside, `*.reducer.*`."""
    facts = {"jtok.plan": json.dumps(task.config.plan.to_dict()), "jtok.data": json.dumps(task.config.data.to_dict())}
    save_params(path, params["model"], task.model, facts, storage=storage)
    if params["plan"]:
        root, ending = os.path.splitext(path)
        save_reducer(f"{root}.reducer{ending}", params["plan"], facts)


def save_reducer(path: str | os.PathLike, params: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> None:
    """Writes a plan's learned parameters (site -> nested dict) to one safetensors file, whole or not at all."""
    tensors = {f"{site}/{name}": np.asarray(a) for site, tree in params.items() for name, a in flatten(tree).items()}
    write_safetensors(path, tensors, dict(facts or {}))


def load_reducer(path: str | os.PathLike, plan: Plan) -> dict[str, Any]:
    """Parameters for the learned reducers of `plan` from a file of `save_reducer`.

    Raises UserError if the plan has none, or names or shapes do not fit.
    """
    like = plan.params()
    if not like:
        raise UserError(f"the plan '{plan.name}' has nothing to learn: leave the reducer file '{path}' away.")
    weights = open_weights(path)
    wanted = {f"{site}/{name}": a for site, tree in like.items() for name, a in flatten(tree).items()}
    check_names(weights, missing=set(wanted) - set(weights.shapes), unknown=set(weights.shapes) - set(wanted))
    for name, a in wanted.items():
        if weights.shapes[name] != a.shape:
            raise wrong_shape(weights, name, weights.shapes[name], a.shape)
    leaves = {
        site: [jnp.asarray(weights.read(f"{site}/{name}")) for name in flatten(tree)] for site, tree in like.items()
    }
    return {site: jax.tree.unflatten(jax.tree.structure(tree), leaves[site]) for site, tree in like.items()}
