"""Loads and saves vision towers. Parameters are pure dicts: what `nnx.to_pure_dict(nnx.state(tower, nnx.Param))` gives.

A file in jtok's own format holds the tower's parameters under their dotted paths (`blocks.mlp.up.kernel`, stacked over
layers) and, in its metadata, the `ViTConfig` as JSON under `jtok.vit`. Released checkpoints are read unedited; the
map of their names and layouts to ours is in `vit_names`, that of their settings in `infer`.
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
from flax import nnx

from jtok.checkpoints import vit_names
from jtok.checkpoints.match import Part
from jtok.checkpoints.read import read
from jtok.checkpoints.rules import Rule
from jtok.checkpoints.safetensor_files import Weights, check_names, open_weights, write_safetensors, wrong_shape
from jtok.checkpoints.trees import flatten
from jtok.errors import UserError
from jtok.layers.resize import resize_grid
from jtok.models.towers.infer import config_from_timm, config_from_transformers
from jtok.models.towers.presets import check_config
from jtok.models.towers.vit import ViT, ViTConfig

#: Metadata key of jtok's own files that holds the config.
CONFIG = "jtok.vit"


def load_vit(
    path: str | os.PathLike,
    *,
    image: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    fields: Mapping[str, Any] | None = None,
) -> tuple[ViTConfig, dict[str, Any]]:
    """A vision tower's config and parameters (float32) from a checkpoint.

    path: a file of `save_params`, a Hugging Face directory of CLIP (its vision side), SigLIP, SigLIP 2, DINOv2 (with
    registers), ViT or DeiT, or a safetensors file with timm's names (alone, or in a directory). image: side in pixels
    to which the position table is resized (bicubic). dtype: of the activations. fields: fields of `ViTConfig` that
    the checkpoint does not state (see `infer.config_from_timm` for the rules for timm files) or that must differ.

    Raises UserError, one sentence each, for a checkpoint that cannot be read or is of no known format, for unknown and
    missing tensors (all in one sentence), for a tensor of the wrong shape, and for settings that do not fit.
    """
    weights = open_weights(path)
    stated_config = _config_of(weights, fields or {})
    config = check_config({**dataclasses.asdict(stated_config), **(fields or {}), "dtype": dtype})
    params = _read(weights, config, _shapes_of(config))
    if image is None or image == config.image:
        return config, params
    if config.packed:
        raise UserError("a packed tower takes images of any shape, so it has no image size to change.")
    resized = check_config({**dataclasses.asdict(config), "image": image, "table": 0})
    return resized, {**params, "position": _resize(params["position"], config, resized)}


def load_params(path: str | os.PathLike, config: ViTConfig, like: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters for a tower of this config, from any checkpoint that fits it; shapes and dtypes are those of `like`.

    Raises UserError as `load_vit` does, and for a checkpoint that states other heads, patches, activations or norms.
    """
    weights = open_weights(path)
    states_config = CONFIG in weights.metadata or weights.config is not None
    if states_config and _table_of(weights) is not vit_names.TIMM_NAMES:  # timm files do not state the heads
        stated = _config_of(weights, {})
        for field in ("heads", "patch", "act", "mlp_kind", "pre_norm", "final_norm"):
            theirs, ours = getattr(stated, field), getattr(config, field)
            if theirs != ours:
                raise UserError(f"'{path}' is a tower with {field} {theirs}, the model has {ours}: make them agree.")
    return _read(weights, config, like)


def save_params(
    path: str | os.PathLike,
    params: Mapping[str, Any],
    config: ViTConfig,
    metadata: Mapping[str, str] | None = None,
    *,
    storage: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Writes a tower's parameters (a pure dict) and its config to one safetensors file, atomically.

    `metadata` adds string facts (how it was trained, accuracy). bfloat16 storage halves the file; loading gives
    float32.
    """
    tensors = {name: np.asarray(a).astype(jnp.dtype(storage)) for name, a in flatten(params).items()}
    facts = {CONFIG: json.dumps(dataclasses.asdict(config)), **(metadata or {})}
    write_safetensors(path, tensors, facts)


def _shapes_of(config: ViTConfig) -> dict[str, Any]:
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: ViT(config, nnx.Rngs(0))), nnx.Param))


def _config_of(weights: Weights, fields: Mapping[str, Any]) -> ViTConfig:
    if CONFIG in weights.metadata:
        try:
            return check_config(json.loads(weights.metadata[CONFIG]))
        except (ValueError, TypeError) as error:
            raise UserError(f"'{weights.source}' states a config that this jtok does not take ({error}).") from None
    if _table_of(weights) is vit_names.TIMM_NAMES:
        return config_from_timm(weights, fields)
    return config_from_transformers(weights)


def _table_of(weights: Weights) -> list[Rule] | None:
    """The name table of a released checkpoint, None for jtok's own file."""
    if CONFIG in weights.metadata:
        return None
    names = {vit_names.split_name(name) for name in weights.shapes}
    for mark, table in vit_names.FORMATS.items():
        if (None, mark) in names:
            return table
    examples = ", ".join(sorted(weights.shapes)[:3]) or "none"
    raise UserError(
        f"'{weights.source}' holds no vision tower that jtok knows (its tensors: {examples}...): "
        "give a file of jtok, a directory of transformers, or a file with timm's vit_names."
    )


def _read(weights: Weights, config: ViTConfig, like: Mapping[str, Any]) -> dict[str, Any]:
    table, wanted = _table_of(weights), flatten(like)
    if table is not None:
        return read(weights, {"": Part(table, config, config.depth, spare=vit_names.HEADS)}, like, vit_names.TOWER)
    tensors = _own(weights, wanted)
    leaves = [jnp.asarray(tensors[path], leaf.dtype) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _own(weights: Weights, wanted: Mapping[str, Any]) -> dict[str, np.ndarray]:
    extra = {name for name in weights.shapes if name not in wanted and not name.startswith(vit_names.HEADS)}
    check_names(weights, missing=wanted.keys() - weights.shapes.keys(), unknown=extra)
    for name, leaf in wanted.items():
        if weights.shapes[name] != tuple(leaf.shape):
            raise wrong_shape(weights, name, weights.shapes[name], tuple(leaf.shape))
    return {name: weights.read(name) for name in wanted}


def _resize(position: jax.Array, old: ViTConfig, new: ViTConfig) -> jax.Array:
    """The position table at another image size; rows of special tokens stay."""
    lead = position.shape[0] - old.side**2
    body = resize_grid(position[lead:], (old.side, old.side), (new.side, new.side), new.antialias)
    return jnp.concatenate([position[:lead], body.astype(position.dtype)])
