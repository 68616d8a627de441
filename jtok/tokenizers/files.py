"""Tokenizers in files: jtok's own (one safetensors file that knows its config), and those of their authors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.checkpoints.safetensor_files import Weights, check_names, open_weights, write_safetensors, wrong_shape
from jtok.checkpoints.trees import flatten
from jtok.errors import UserError
from jtok.models.diffusion.flow import Guidance
from jtok.tokenizers.alit import ALIT, ALITConfig
from jtok.tokenizers.bases import VQGAN, open_base
from jtok.tokenizers.bases.open_base import base_prefix
from jtok.tokenizers.code import Tokenizer
from jtok.tokenizers.flextok import FlexTok, FlexTokConfig
from jtok.tokenizers.karl import KARL, KARLConfig
from jtok.tokenizers.released import fill
from jtok.tokenizers.released_configs import (
    alit_config,
    flextok_config,
    karl_config,
    released_kind,
    stated_by_flextok,
)
from jtok.tokenizers.titok import SIZES, TiTok, TiTokConfig

#: Key of the metadata of a file of ours: {"kind": ..., "config": {...}}.
KEY = "jtok.tokenizer"
KINDS: dict[str, tuple[type, type]] = {
    "titok": (TiTok, TiTokConfig),
    "flextok": (FlexTok, FlexTokConfig),
    "alit": (ALIT, ALITConfig),
    "karl": (KARL, KARLConfig),
}


def save_tokenizer(
    path: str | os.PathLike,
    tokenizer: Tokenizer,
    metadata: Mapping[str, str] | None = None,
    *,
    storage: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Writes a tokenizer, without the base tokenizer or VAE it stands on, to one file, whole or not at all."""
    kind = next(name for name, (made, _) in KINDS.items() if isinstance(tokenizer, made))
    facts = {KEY: json.dumps({"kind": kind, "config": dataclasses.asdict(tokenizer.config)}), **(metadata or {})}
    tensors = flatten(nnx.to_pure_dict(nnx.state(tokenizer, nnx.Param)))
    write_safetensors(path, {k: np.asarray(a).astype(jnp.dtype(storage)) for k, a in tensors.items()}, facts)


def load_tokenizer(path: str | os.PathLike, base: Any = None) -> Tokenizer:
    """A tokenizer from a file of `save_tokenizer`, or a release of TiTok, One-D-Piece, FlexTok, ALIT or KARL.

    base: the base tokenizer (ALIT, KARL) or VAE (FlexTok) that it stands on, or its file; releases that hold one need
    none. Raises UserError, one sentence each, for a checkpoint that cannot be read, of something else, with missing or
    unknown tensors, or with wrong shapes, and for a base of another architecture.
    """
    weights = open_weights(path)
    if KEY not in weights.metadata:
        return _with_base(_released(path, weights), base, weights)
    try:
        stated = json.loads(weights.metadata[KEY])
        made, config_type = KINDS[stated["kind"]]
        config = config_type(**_tuples(stated["config"]))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"'{path}' states a tokenizer that this jtok does not take ({error}).") from None
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


def fingerprint(tokenizer: Tokenizer) -> bytes:
    """Eight bytes that tell this tokenizer, weights and all, from others: codes belong to one."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(nnx.to_pure_dict(nnx.state(tokenizer, nnx.Param))).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(np.asarray(array, np.float32)).tobytes())
    return digest.digest()[:8]


def _tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's lists as tuples, and its dict of guidance as what it was."""
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    if isinstance(fields.get("guidance"), dict):
        fields["guidance"] = Guidance(**fields["guidance"])
    return fields


def _released(path: str | os.PathLike, weights: Weights) -> Tokenizer:
    kind = released_kind(weights)
    if kind == "flextok":
        config = flextok_config(weights, stated_by_flextok(weights))
    elif kind is not None:
        config = (alit_config if kind == "alit" else karl_config)(weights)
    else:
        kind, config = "titok", _titok(path, weights)
    made, left = KINDS[kind][0], {"titok": (), "flextok": ("vae.",)}.get(kind, ("base_tokenizer.", "gan_losses."))
    model = nnx.eval_shape(lambda: made(config, nnx.Rngs(0)))
    return fill(model, weights, model.names(), left)


def _titok(path: str | os.PathLike, weights: Weights) -> TiTokConfig:
    if weights.config is None:
        raise UserError(f"'{path}' is no tokenizer of jtok's, and has no config.json of a release beside it.")
    try:
        return titok_config(weights.config, set(weights.shapes))
    except (KeyError, TypeError):
        raise UserError(f"the config.json of '{path}' is none of TiTok's: it states no model.vq_model.") from None


def _with_base(tokenizer: Tokenizer, base: Any, weights: Weights) -> Tokenizer:
    """The tokenizer on the base that is given (a file, or itself), else on the one in its own checkpoint, if any."""
    place = "vae" if isinstance(tokenizer, FlexTok) else "base"
    if base is None and KEY not in weights.metadata and base_prefix(weights) is not None:
        base = _enclosed(weights)
    if base is None:
        return tokenizer
    if isinstance(tokenizer, TiTok):
        raise UserError(f"'{weights.source}' is a TiTok, which stands on no base tokenizer: leave the base out.")
    if isinstance(base, str | os.PathLike):
        source, base = base, open_base(base)
        check_base(tokenizer.config, base, str(source))
    setattr(tokenizer, place, nnx.data(base) if isinstance(base, nnx.Module) else base)
    return tokenizer


def _enclosed(weights: Weights) -> Any:
    """The base in a release's own checkpoint; None for a VAE whose scale is not stated."""
    if not base_prefix(weights).startswith("vae."):
        return open_base(weights)
    vae = stated_by_flextok(weights).get("vae") or {}
    return open_base(weights, stated=vae) if vae.get("scaling_factor") else None


def check_base(config: Any, base: Any, source: str) -> None:
    """Raises UserError for a base that does not fit what stands on it."""
    flextok = isinstance(config, FlexTokConfig)
    channels, stride = (config.channels, None) if flextok else (config.base_width, config.patch)
    if base.channels != channels:
        raise UserError(f"'{source}' has codes of {base.channels} channels; the tokenizer stands on {channels}.")
    if stride is not None and base.stride != stride:
        raise UserError(f"'{source}' has one code for {base.stride} pixels a side; the tokenizer wants {stride}.")
    codes = 0 if flextok else config.base_codes
    own = base.config.codes if isinstance(base, VQGAN) else 0
    if own != codes:
        raise UserError(f"'{source}' has {own or 'no'} codes; the tokenizer was trained on {codes or 'a VAE'}.")


def titok_config(stated: Mapping[str, Any], tensors: set[str]) -> TiTokConfig:
    """The config of a released TiTok, TA-TiTok or One-D-Piece from its config.json and the names of its tensors."""
    stated = stated.get("config", stated)
    model = stated["model"]["vq_model"]
    kl = model.get("quantize_mode", "vq") == "vae"
    legacy = bool(model.get("is_legacy", True)) and not kl
    text = "decoder.text_guidance_proj.weight" in tensors
    return TiTokConfig(
        image=int(stated["dataset"]["preprocessing"]["crop_size"]),
        patch=model["vit_enc_patch_size"],
        tokens=model["num_latent_tokens"],
        encoder=SIZES[model["vit_enc_model_size"]],
        decoder=SIZES[model["vit_dec_model_size"]],
        bottleneck="kl" if kl else "vq",
        codebook=model["codebook_size"],
        code_width=model["token_size"],
        cosine=bool(model.get("use_l2_norm", False)),
        beta=model.get("commitment_cost", 0.25),
        legacy=legacy,
        pixels=legacy and "pixel_quantize.embedding.weight" in tensors,
        text_length=model.get("text_context_length", 77) if text else 0,
        text_width=model.get("text_embed_dim", 768) if text else 0,
        drop_tail=not model.get("strict_length_assertion", True),
    )
