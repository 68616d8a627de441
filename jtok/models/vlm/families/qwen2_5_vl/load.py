"""The config of a Qwen2.5-VL checkpoint, from a nested config.json or one with the decoder on top, and its tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from jtok.checkpoints.match import Part
from jtok.checkpoints.vlm_names import PROJECTOR_NAMES
from jtok.errors import UserError
from jtok.layers.activations import activation_named
from jtok.layers.projector import ProjectorConfig
from jtok.models.decoder.decoder import Dtype
from jtok.models.decoder.language_config import decoder_config
from jtok.models.decoder.language_part import language_part
from jtok.models.towers.qwen_vision import QwenVisionConfig
from jtok.models.vlm.families.qwen2_5_vl.names import TOWER_NAMES
from jtok.models.vlm.network import VLMConfig

#: What transformers takes for a field of the decoder, and of the tower, that a config.json leaves out.
_TEXT: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "mrope_section": (16, 24, 24),
}
_TOWER: dict[str, Any] = {
    "hidden_size": 3584,
    "depth": 32,
    "num_heads": 16,
    "intermediate_size": 3420,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": (7, 15, 23, 31),
    "hidden_act": "silu",
}


def qwen_config(path: str | os.PathLike, stated: Mapping[str, Any], dtype: Dtype) -> VLMConfig:
    """The config of a vision-language model from a config.json of model type `qwen2_5_vl`.

    Raises UserError, one sentence each, for what jtok does not have: activations, windows that are no whole quads, a
    tower whose output does not fit the decoder.
    """
    text = {**(stated.get("text_config") or stated), "model_type": "qwen2"}
    if text.get("tie_word_embeddings") is None or stated.get("tie_word_embeddings"):
        text["tie_word_embeddings"] = stated.get("tie_word_embeddings")
    language = decoder_config(text, path, _TEXT, dtype=dtype, storage=dtype)
    tower, width = _tower(path, stated.get("vision_config") or {}, dtype)
    if width != language.width:
        raise UserError(f"'{path}' has a tower that gives {width} features to a decoder of {language.width}.")
    return VLMConfig(
        family="qwen2_5_vl",
        tower=tower,
        projector=ProjectorConfig(tower.quad * tower.width, width, hidden=tower.quad * tower.width),
        language=language,
        image_token=stated.get("image_token_id", 151655),
        drop_class=False,
    )


def qwen_parts(config: VLMConfig) -> dict[str, Part]:
    """How the tensors are read; the merger's MLP is the projector."""
    return {
        "tower": Part(TOWER_NAMES, config.tower, config.tower.depth),
        "projector": Part(PROJECTOR_NAMES, config.projector),
        "language": language_part(config.language),
    }


def _tower(path: str | os.PathLike, stated: Mapping[str, Any], dtype: Dtype) -> tuple[QwenVisionConfig, int]:
    """(the tower's config, features of its merged tokens)."""
    fields = {**_TOWER, **{name: value for name, value in stated.items() if value is not None}}
    act = activation_named(fields["hidden_act"], path, "in its tower")
    side = fields["patch_size"] * fields["spatial_merge_size"]
    if fields["window_size"] < side:
        raise UserError(f"'{path}' has windows of {fields['window_size']} pixels: they must hold a token of {side}.")
    config = QwenVisionConfig(
        width=fields["hidden_size"],
        depth=fields["depth"],
        heads=fields["num_heads"],
        mlp=fields["intermediate_size"],
        channels=fields.get("in_chans", fields["in_channels"]),
        patch=fields["patch_size"],
        temporal=fields["temporal_patch_size"],
        merge=fields["spatial_merge_size"],
        window=fields["window_size"] // side,
        full=tuple(fields["fullatt_block_indexes"]),
        act=act,
        theta=float((fields.get("rope_parameters") or {}).get("rope_theta", 10000.0)),
        dtype=dtype,
    )
    return config, fields["out_hidden_size"]
