"""Loads and saves vision towers. Parameters are pure dicts: what `nnx.to_pure_dict(nnx.state(tower, nnx.Param))` gives.

A file of jtok's own holds the tower's parameters under their dotted paths (`blocks.mlp.up.kernel`, stacked over
layers) and, in its metadata, the `ViTConfig` as JSON under `jtok.vit`.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jtok.errors import UserError
from jtok.models.safetensor_files import Weights, open_weights, write_safetensors
from jtok.models.vit import ViTConfig

#: Key of the metadata of jtok's own files that holds the config.
CONFIG = "jtok.vit"


def save_params(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    config: ViTConfig,
    metadata: Mapping[str, str] | None = None,
    *,
    storage: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Writes a tower's parameters (a pure dict) and its config to one safetensors file, whole or not at all.

    `metadata` adds string facts (how it was trained, accuracy). bfloat16 storage halves the file; loading gives float32
    again.
    """
    tensors = {name: np.asarray(a).astype(jnp.dtype(storage)) for name, a in flatten(params).items()}
    facts = {CONFIG: json.dumps(dataclasses.asdict(config)), **(metadata or {})}
    write_safetensors(path, tensors, facts)


def load_params(path: str | os.PathLike, config: ViTConfig, like: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for a tower of this config, from any checkpoint that fits it; shapes and dtypes are those of `like`.

    Raises UserError as `open_weights` does, with all unknown and missing tensors in one sentence, and for a tensor of
    the wrong shape.
    """
    weights = open_weights(path)
    return _from_own(weights, like)


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths to leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _from_own(weights: Weights, like: Mapping[str, Any]) -> dict[str, Any]:
    wanted = flatten(like)
    check_names(weights, missing=set(wanted) - set(weights.shapes), unknown=set(weights.shapes) - set(wanted))
    for name, leaf in wanted.items():
        if weights.shapes[name] != tuple(leaf.shape):
            raise wrong_shape(weights, name, weights.shapes[name], tuple(leaf.shape))
    leaves = [jnp.asarray(weights.read(name), leaf.dtype) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check_names(weights: Weights, *, missing: set[str], unknown: set[str]) -> None:
    """Raises one UserError that lists every missing and every unknown tensor."""
    faults = []
    if missing:
        faults.append(f"lacks {', '.join(sorted(missing))}")
    if unknown:
        faults.append(f"has unknown {', '.join(sorted(unknown))}")
    if faults:
        raise UserError(f"'{weights.source}' does not fit the model: it {' and '.join(faults)}.")


def wrong_shape(weights: Weights, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> UserError:
    """The sentence about a tensor of the wrong shape."""
    return UserError(f"tensor {name} of '{weights.source}' has shape {list(found)}, the model needs {list(wanted)}.")
