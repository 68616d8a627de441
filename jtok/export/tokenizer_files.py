"""A TiTok or One-D-Piece under its authors' names: config.json and model.safetensors, as their code reads them."""

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
from jtok.tokenizers.code import Tokenizer
from jtok.tokenizers.files import load_tokenizer
from jtok.tokenizers.titok import SIZES, TiTok, TiTokConfig

#: Fields that say how it is trained or computed, which no file of a release tells.
_FREE = {"dtype", "remat", "entropy", "temperature", "pass_through"}


def save_released(directory: Path, tokenizer: Tokenizer, storage: str = "float32") -> dict[str, Any]:
    """Writes config.json and model.safetensors into an existing directory; returns the config.

    The files are read back and must give the same tokenizer. Raises UserError for one that no release is like.
    """
    if not isinstance(tokenizer, TiTok):
        raise UserError("TiTok and One-D-Piece have released names here, this is another: export it as stablehlo.")
    stated = released_config(tokenizer.config)
    tensors = {name: a.astype(jnp.dtype(storage)) for name, a in released_tensors(tokenizer).items()}
    (directory / "config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    write_safetensors(directory / "model.safetensors", tensors, {"format": "pt"})
    _check(directory, tokenizer, storage)
    return stated


def released_config(c: TiTokConfig) -> dict[str, Any]:
    """config.json of a release. Raises UserError for a bottleneck or a size that none has."""
    sizes = {shape: name for name, shape in SIZES.items()}
    if c.bottleneck == "fsq" or c.encoder not in sizes or c.decoder not in sizes:
        shapes = ", ".join(f"{name} {shape}" for name, shape in SIZES.items())
        raise UserError(
            f"no release has a bottleneck '{c.bottleneck}' with encoder {c.encoder} and decoder {c.decoder}: theirs "
            f"are vq and kl with {shapes} (width, depth, heads); export it as stablehlo."
        )
    model: dict[str, Any] = {
        "codebook_size": c.codebook,
        "token_size": c.code_width,
        "use_l2_norm": c.cosine,
        "commitment_cost": c.beta,
        "vit_enc_model_size": sizes[c.encoder],
        "vit_dec_model_size": sizes[c.decoder],
        "vit_enc_patch_size": c.patch,
        "vit_dec_patch_size": c.patch,
        "num_latent_tokens": c.tokens,
        "quantize_mode": "vae" if c.bottleneck == "kl" else "vq",
        "is_legacy": c.legacy,
        "finetune_decoder": c.pixels,
    }
    if c.text_length:
        model |= {"text_context_length": c.text_length, "text_embed_dim": c.text_width}
    if c.drop_tail:
        model["strict_length_assertion"] = False
    return {
        "model": {"vq_model": model},
        "dataset": {"preprocessing": {"crop_size": c.image, "resize_shorter_edge": c.image}},
    }


def released_tensors(tokenizer: TiTok) -> dict[str, np.ndarray]:
    """Name -> float32 array of every tensor, as its authors name and lay them."""
    ours = flatten(nnx.to_pure_dict(nnx.state(tokenizer, nnx.Param)))
    return released({k: np.asarray(a, np.float32) for k, a in ours.items()}, tokenizer.config, list(tokenizer.names()))


def _check(directory: Path, tokenizer: TiTok, storage: str) -> None:
    """Raises UserError unless the files give this tokenizer again."""
    found = load_tokenizer(directory)
    fields = [f.name for f in dataclasses.fields(tokenizer.config) if f.name not in _FREE]
    other = [f for f in fields if getattr(found.config, f) != getattr(tokenizer.config, f)]
    if other:
        said = ", ".join(f"{f} {getattr(tokenizer.config, f)} would be {getattr(found.config, f)}" for f in other)
        raise UserError(f"no released TiTok is like this tokenizer ({said}): export it as stablehlo.")
    before, after = (flatten(nnx.to_pure_dict(nnx.state(t, nnx.Param))) for t in (tokenizer, found))
    for path, a in before.items():
        if not np.array_equal(np.asarray(a).astype(jnp.dtype(storage)).astype(np.float32), np.asarray(after[path])):
            raise RuntimeError(f"{path} is read back as something else than was written")
