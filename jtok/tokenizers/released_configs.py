"""What the tensors of a released FlexTok, ALIT or KARL say of its config: their files hold none, or another code's."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from jtok.checkpoints.safetensor_files import Weights
from jtok.errors import UserError
from jtok.tokenizers.alit import ALITConfig
from jtok.tokenizers.flextok import FlexTokConfig
from jtok.tokenizers.karl import KARLConfig

#: A tensor that only the checkpoints of each have.
MARKS = {
    "alit": "encoder_ln_recursive.weight",
    "karl": "rec_loss_embeddings",
    "flextok": "encoder.module_dict.enc_register_module.registers",
}
BASE_CODES = "base_tokenizer.vqgan.quantize.embedding.weight"


def released_kind(weights: Weights) -> str | None:
    """The kind among the three that a checkpoint is of, None if of none."""
    return next((kind for kind, name in MARKS.items() if name in weights.shapes), None)


def alit_config(weights: Weights) -> ALITConfig:
    """The config of a converted `alit_*.pth`. There are as many heads as layers, as in all published sizes."""
    rounds, tokens, _ = _shape(weights, "timestep_embedding")
    patch = _shape(weights, "patch_embed.weight")[-1]
    side = round((_shape(weights, "encoder_positional_embedding")[0] - 1) ** 0.5)
    most = _shape(weights, "decoder.latent_token_positional_embedding")[0]
    return ALITConfig(image=side * patch, tokens=tokens, rounds=rounds, most=most, **_shared(weights))


def karl_config(weights: Weights) -> KARLConfig:
    """The config of a converted `karl_*.pth`; the budget is the recommended 256."""
    most = _shape(weights, "latent_tokens")[0]
    table = _shape(weights, "encoder_positional_embedding")[-1]
    hidden = _shape(weights, "halting_mlp.0.weight")[0]
    return KARLConfig(tokens=min(256, most), most=most, table=table, halting_width=hidden, **_shared(weights))


def _shared(weights: Weights) -> dict[str, Any]:
    width, _, patch, _ = _shape(weights, "patch_embed.weight")
    shapes = {side: _transformer(weights, side) for side in ("encoder", "decoder")}
    return shapes | {
        "patch": patch,
        "codebook": weights.shapes.get("quantize.embedding.weight", (1,))[0],
        "code_width": _shape(weights, "pre_quantizer_mlp.weight")[0],
        "quantize": "quantize.embedding.weight" in weights.shapes,
        "base_width": shapes["encoder"][0] - width,
        "base_codes": weights.shapes.get(BASE_CODES, (0,))[0],
    }


def _transformer(weights: Weights, side: str) -> tuple[int, int, int]:
    """Width, layers and heads."""
    layers = _layers(weights, f"{side}.transformer.")
    return _shape(weights, f"{side}.ln_pre.weight" if side == "decoder" else "encoder_ln_pre.weight")[0], layers, layers


def flextok_config(weights: Weights, stated: Mapping[str, Any]) -> FlexTokConfig:
    """The config of EPFL-VILAB's flextok_*. stated: the release's, from which head size and FSQ levels are taken."""
    e, d = "encoder.module_dict", "decoder.module_dict"
    registers, width = _shape(weights, MARKS["flextok"])
    inputs = _shape(weights, f"{e}.enc_patch_emb.patch_proj.weight")[1]
    other = _shape(weights, f"{d}.dec_from_latents.proj.weight")[0]
    codes = _shape(weights, f"{e}.enc_to_latents.proj.weight")[0]
    modulation = _shape(weights, f"{d}.dec_transformer.blocks.0.adaLN_modulation.1.weight")[0]
    modules = (stated.get("encoder") or {}).get("module_dict") or {}
    patch = ((modules.get("enc_patch_emb") or {}).get("patch_sizes") or [2])[0]
    levels = tuple((stated.get("regularizer") or {}).get("levels") or FlexTokConfig.levels)
    if len(levels) != codes:
        raise UserError(f"'{weights.source}' codes {codes} numbers a token, and states FSQ levels for {len(levels)}.")
    return FlexTokConfig(
        encoder_depth=_layers(weights, f"{e}.enc_transformer.blocks."),
        decoder_depth=_layers(weights, f"{d}.dec_transformer.blocks."),
        encoder_width=width,
        decoder_width=other,
        head_size=(modules.get("enc_transformer") or {}).get("head_dim") or FlexTokConfig.head_size,
        channels=inputs // patch**2,
        patch=patch,
        grid=_shape(weights, f"{e}.enc_posemb_module.posembs")[-1],
        registers=registers,
        levels=levels,
        modulations=modulation // (6 * other),
        frequencies=_shape(weights, f"{d}.dec_time_embedder.mlp.0.weight")[1],
    )


def stated_by_flextok(weights: Weights) -> dict[str, Any]:
    """The config of a release: config.json beside the file, else the file's metadata, which holds Python literals."""
    if weights.config is not None:
        return weights.config
    fields = {}
    for key, text in weights.metadata.items():
        try:
            fields[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):  # a plain string
            fields[key] = text
    return fields


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    if name not in weights.shapes:
        raise UserError(f"'{weights.source}' lacks {name}: it is no whole checkpoint of {released_kind(weights)}.")
    return weights.shapes[name]


def _layers(weights: Weights, prefix: str) -> int:
    numbers = {name.removeprefix(prefix).split(".")[0] for name in weights.shapes if name.startswith(prefix)}
    return len(numbers)
