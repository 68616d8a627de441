"""A tokenizer under its authors' names: config.json and model.safetensors, as their code reads them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.checkpoints.safetensor_files import write_safetensors
from jtok.checkpoints.trees import flatten
from jtok.checkpoints.write import released
from jtok.errors import UserError
from jtok.tokenizers.files import load_tokenizer
from jtok.tokenizers.protocol import ImageTokenizer

#: Fields that say how it is trained or computed, which released files do not record.
_FREE = {"dtype", "remat", "entropy", "temperature", "pass_through"}


def save_released(directory: Path, tokenizer: ImageTokenizer, storage: str = "float32") -> dict[str, Any]:
    """Writes config.json and model.safetensors into an existing directory; returns the config.

    The files are read back and must give the same tokenizer. Raises UserError for one that no release is like.
    """
    stated = tokenizer.release()
    tensors = {name: a.astype(jnp.dtype(storage)) for name, a in released_tensors(tokenizer).items()}
    (directory / "config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    _check(directory, tokenizer, storage)
    return stated


def released_tensors(tokenizer: ImageTokenizer) -> dict[str, np.ndarray]:
    """Name -> float32 array of every tensor, as its authors name and lay them."""
    ours = flatten(nnx.to_pure_dict(nnx.state(tokenizer, nnx.Param)))
    return released({k: np.asarray(a, np.float32) for k, a in ours.items()}, tokenizer.config, list(tokenizer.names()))


def _check(directory: Path, tokenizer: ImageTokenizer, storage: str) -> None:
    """Raises UserError unless the files give this tokenizer again."""
    loaded = load_tokenizer(directory)
    fields = [f.name for f in dataclasses.fields(tokenizer.config) if f.name not in _FREE]
    other = [f for f in fields if getattr(loaded.config, f) != getattr(tokenizer.config, f)]
    if other:
        said = ", ".join(f"{f} {getattr(tokenizer.config, f)} would be {getattr(loaded.config, f)}" for f in other)
        raise UserError(f"no release is like this tokenizer ({said}): export it as stablehlo.")
    before, after = (flatten(nnx.to_pure_dict(nnx.state(t, nnx.Param))) for t in (tokenizer, loaded))
    for path, a in before.items():
        if not np.array_equal(np.asarray(a).astype(jnp.dtype(storage)).astype(np.float32), np.asarray(after[path])):
            raise RuntimeError(f"{path} is read back as something else than was written")
