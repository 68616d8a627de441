"""Files of learned reducers: in jtok's format, and projectors in the format their authors released."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok.checkpoints.match import Part
from jtok.checkpoints.projector_names import projector_format, spell
from jtok.checkpoints.read import read
from jtok.checkpoints.safetensor_files import Weights, check_names, open_weights, write_safetensors, wrong_shape
from jtok.checkpoints.trees import flatten
from jtok.checkpoints.write import released
from jtok.errors import UserError
from jtok.plan import Plan


def save_reducer(path: str | os.PathLike, params: Mapping[str, Any], facts: Mapping[str, str] | None = None) -> None:
    """Writes a plan's learned parameters (site -> nested dict) to one safetensors file, whole or not at all."""
    tensors = {f"{site}/{name}": np.asarray(a) for site, tree in params.items() for name, a in flatten(tree).items()}
    write_safetensors(path, tensors, dict(facts or {}))


def save_projector(path: str | os.PathLike, plan: Plan, facts: Mapping[str, str] | None = None) -> None:
    """Writes the projector of a plan under its authors' names, whole or not at all.

    Raises UserError if the plan has none that is learned and has such names.
    """
    if not hasattr(plan.projector, "names"):
        raise UserError(f"the plan '{plan.name}' has no projector of its own to save: save the model.")
    params = flatten(plan.params()["projector"])
    write_safetensors(path, released(params, None, plan.projector.names, spell), facts or {})


def load_reducer(path: str | os.PathLike, plan: Plan) -> dict[str, Any]:
    """Parameters for the learned reducers of `plan` from a file of `save_reducer`.

    The projector of a plan is also read from its authors' checkpoint, a file or a directory, whole or the projector
    alone. Raises UserError if the plan has nothing to learn, or names or shapes do not fit.
    """
    like = plan.params()
    if not like:
        raise UserError(f"the plan '{plan.name}' has nothing to learn: leave the reducer file '{path}' away.")
    weights = open_weights(path)
    wanted = {site: flatten(tree) for site, tree in like.items()}
    by_site = any(name.startswith(f"{site}/") for name in weights.shapes for site in wanted)
    if not by_site and set(wanted) == {"projector"} and hasattr(plan.projector, "names"):
        fixed = getattr(plan.projector, "fixed_names", ())
        part = Part(plan.projector.names, None)
        return {"projector": read(weights, {"": part}, like["projector"], projector_format(weights, fixed))}
    arrays = _read(weights, wanted)
    return {
        site: jax.tree.unflatten(jax.tree.structure(tree), [jnp.asarray(arrays[site][name]) for name in wanted[site]])
        for site, tree in like.items()
    }


def _read(weights: Weights, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Site -> name -> array from a file of `save_reducer`."""
    names = {f"{site}/{name}": a for site, tree in wanted.items() for name, a in tree.items()}
    check_names(weights, missing=set(names) - set(weights.shapes), unknown=set(weights.shapes) - set(names))
    for name, a in names.items():
        if weights.shapes[name] != a.shape:
            raise wrong_shape(weights, name, weights.shapes[name], a.shape)
    return {site: {name: weights.read(f"{site}/{name}") for name in tree} for site, tree in wanted.items()}
