"""A tokenizer under its authors' names: config.json and model.safetensors, as their code reads them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.checkpoints.safetensor_files import write_safetensors
from jtok.checkpoints.trees import flatten
from jtok.errors import UserError
from jtok.tokenizers.files import load_tokenizer
from jtok.tokenizers.protocol import ImageTokenizer
from jtok.tokenizers.released import Name

#: Fields that say how it is trained or computed, which no file of a release tells.
_FREE = {"dtype", "remat", "entropy", "temperature", "pass_through"}
#: Projections that their code makes as convolutions of one pixel.
_ONE_PIXEL = re.compile(r"(encoder\.conv_out|decoder\.ffn\.\d)\.weight$")


def save_released(directory: Path, tokenizer: ImageTokenizer, storage: str = "float32") -> dict[str, Any]:
    """Writes config.json and model.safetensors into an existing directory; returns the config.

    The files are read back and must give the same tokenizer. Raises UserError for one that no release is like.
    """
    stated = tokenizer.release()
    tensors = {name: a.astype(jnp.dtype(storage)) for name, a in released_tensors(tokenizer)}
    (directory / "config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    _check(directory, tokenizer, storage)
    return stated


def released_tensors(tokenizer: ImageTokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of every tensor, as its authors name and lay them."""
    ours = flatten(nnx.to_pure_dict(nnx.state(tokenizer, nnx.Param)))
    for name in tokenizer.names():
        if name.ours not in ours:
            continue
        whole = np.asarray(ours[name.ours], np.float32)
        for i, a in enumerate(whole) if "{}" in name.theirs else [(0, whole)]:
            yield name.theirs.format(i), _laid_out(name, a, tokenizer.config.patch)


def _laid_out(name: Name, a: np.ndarray, patch: int) -> np.ndarray:
    """Outputs before inputs, and the axes of one that their shapes have."""
    if name.how == "conv":
        return a.transpose(3, 2, 0, 1)
    if name.how == "patch":
        return a.reshape(patch, patch, -1, a.shape[-1]).transpose(3, 2, 0, 1)
    if name.how == "linear":
        inputs = a.shape[0] if name.theirs.endswith("in_proj_weight") else a.size // a.shape[-1]
        a = a.reshape(inputs, -1).T
        return a[..., None, None] if _ONE_PIXEL.search(name.theirs) else a
    if name.theirs.endswith("bias"):
        return a.reshape(-1)
    return a[None] if name.theirs.endswith("mask_token") else a


def _check(directory: Path, tokenizer: ImageTokenizer, storage: str) -> None:
    """Raises UserError unless the files give this tokenizer again."""
    found = load_tokenizer(directory)
    fields = [f.name for f in dataclasses.fields(tokenizer.config) if f.name not in _FREE]
    other = [f for f in fields if getattr(found.config, f) != getattr(tokenizer.config, f)]
    if other:
        said = ", ".join(f"{f} {getattr(tokenizer.config, f)} would be {getattr(found.config, f)}" for f in other)
        raise UserError(f"no release is like this tokenizer ({said}): export it as stablehlo.")
    before, after = (flatten(nnx.to_pure_dict(nnx.state(t, nnx.Param))) for t in (tokenizer, found))
    for path, a in before.items():
        if not np.array_equal(np.asarray(a).astype(jnp.dtype(storage)).astype(np.float32), np.asarray(after[path])):
            raise RuntimeError(f"{path} is read back as something else than was written")
