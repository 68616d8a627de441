"""Tokenizers in files: jtok's own format (one safetensors file that states its config), and the authors' releases."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.checkpoints.safetensor_files import Weights, check_names, open_weights, write_safetensors, wrong_shape
from jtok.checkpoints.trees import flatten
from jtok.errors import UserError
from jtok.tokenizers.base_grid import BaseTokenizer
from jtok.tokenizers.bases import open_base
from jtok.tokenizers.bases.open_base import base_prefix
from jtok.tokenizers.protocol import ImageTokenizer
from jtok.tokenizers.registry import entry_of, tokenizers
from jtok.tokenizers.released import fill
from jtok.tokenizers.released_configs import (
    alit_config,
    flextok_config,
    karl_config,
    released_kind,
    stated_by_flextok,
)

#: Key of the metadata of a file of ours: {"kind": ..., "config": {...}}.
KEY = "jtok.tokenizer"
#: Config readers for releases that state no config, by kind; others are recognised by `released_config`.
FROM_TENSORS: dict[str, Callable[[Weights], Any]] = {
    "alit": alit_config,
    "karl": karl_config,
    "flextok": lambda weights: flextok_config(weights, stated_by_flextok(weights)),
}


def save_tokenizer(
    path: str | os.PathLike,
    tokenizer: ImageTokenizer,
    metadata: Mapping[str, str] | None = None,
    *,
    storage: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Writes a tokenizer, without its base tokenizer or VAE, to one file, atomically."""
    facts = {
        KEY: json.dumps({"kind": entry_of(tokenizer).kind, "config": dataclasses.asdict(tokenizer.config)}),
        **(metadata or {}),
    }
    tensors = flatten(nnx.to_pure_dict(nnx.state(tokenizer, nnx.Param)))
    write_safetensors(path, {k: np.asarray(a).astype(jnp.dtype(storage)) for k, a in tensors.items()}, facts)


def load_tokenizer(path: str | os.PathLike, base: Any = None) -> ImageTokenizer:
    """A tokenizer from a file of `save_tokenizer`, or a release of any tokenizer of the catalogue that has one.

    base: the base tokenizer (ALIT, KARL) or VAE (FlexTok) that it is built on, or its file; releases that hold one
    need none. Raises UserError, one sentence each, for a checkpoint that cannot be read, of something else, with
    missing or unknown tensors, or with wrong shapes, and for a base of another architecture.
    """
    weights = open_weights(path)
    if KEY not in weights.metadata:
        return _with_base(_released(path, weights), base, weights)
    try:
        stated = json.loads(weights.metadata[KEY])
        entry = tokenizers()[stated["kind"]]
        made, config = entry.model, _as_config(entry.config, stated["config"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"'{path}' states a tokenizer that this jtok does not know ({error}).") from None
    shapes = nnx.eval_shape(lambda: made(config, nnx.Rngs(0)))
    graph, state, rest = nnx.split(shapes, nnx.Param, ...)
    wanted = flatten(nnx.to_pure_dict(state))
    check_names(weights, missing=wanted.keys() - weights.shapes.keys(), unknown=weights.shapes.keys() - wanted.keys())
    for name, leaf in wanted.items():
        if weights.shapes[name] != tuple(leaf.shape):
            raise wrong_shape(weights, name, weights.shapes[name], tuple(leaf.shape))
    leaves = [jnp.asarray(weights.read(name), leaf.dtype) for name, leaf in wanted.items()]
    nnx.replace_by_pure_dict(state, jax.tree.unflatten(jax.tree.structure(nnx.to_pure_dict(state)), leaves))
    return _with_base(nnx.merge(graph, state, rest), base, weights)


def fingerprint(tokenizer: ImageTokenizer) -> bytes:
    """Eight bytes that identify this tokenizer and its weights, since codes are only valid for one."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(nnx.to_pure_dict(nnx.state(tokenizer, nnx.Param))).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(np.asarray(array, np.float32)).tobytes())
    return digest.digest()[:8]


def _as_config(made: type, stated: Mapping[str, Any]) -> Any:
    """A config from JSON, whose lists were tuples and whose objects were dataclasses."""
    types = get_type_hints(made)
    fields = {}
    for name, value in stated.items():
        nested = isinstance(value, dict) and dataclasses.is_dataclass(types.get(name))
        fields[name] = tuple(value) if isinstance(value, list) else types[name](**value) if nested else value
    return made(**fields)


def _released(path: str | os.PathLike, weights: Weights) -> ImageTokenizer:
    made, config = _recognised(path, weights)
    model = nnx.eval_shape(lambda: made(config, nnx.Rngs(0)))
    return fill(model, weights, model.names(), made.beside)


def _recognised(path: str | os.PathLike, weights: Weights) -> tuple[type, Any]:
    """The class and the config of a release. Raises UserError for a checkpoint of anything else."""
    kind = released_kind(weights)
    if kind is not None:
        return tokenizers()[kind].model, FROM_TENSORS[kind](weights)
    for made in dict.fromkeys(entry.model for entry in tokenizers().values()):
        if (config := made.released_config(weights)) is not None:
            return made, config
    if weights.config is None:
        raise UserError(f"'{path}' is not a jtok tokenizer, and has no config.json of a release beside it.")
    names = ", ".join(tokenizers())
    raise UserError(f"the config.json of '{path}' is not that of a tokenizer that jtok knows ({names}).")


def _with_base(
    tokenizer: ImageTokenizer, base: BaseTokenizer | str | os.PathLike | None, weights: Weights
) -> ImageTokenizer:
    """The tokenizer with the given base (a file or a module), else with the one in its checkpoint, if any."""
    if base is None and KEY not in weights.metadata and base_prefix(weights) is not None:
        base = _enclosed(weights)
    if base is None:
        return tokenizer
    if tokenizer.base_slot is None:
        name = type(tokenizer).__name__
        raise UserError(f"'{weights.source}' is a {name}, which uses no base tokenizer: leave the base out.")
    if isinstance(base, str | os.PathLike):
        source, base = base, open_base(base)
        tokenizer.base_needs.check(base, str(source))
    tokenizer.put_base(base)
    return tokenizer


def _enclosed(weights: Weights) -> Any:
    """The base in a release's own checkpoint; None for a VAE whose scale is not stated."""
    if not base_prefix(weights).startswith("vae."):
        return open_base(weights)
    vae = stated_by_flextok(weights).get("vae") or {}
    return open_base(weights, stated=vae) if vae.get("scaling_factor") else None
