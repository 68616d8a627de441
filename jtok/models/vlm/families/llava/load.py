"""Configs of models built like LLaVA: a tower of `ViTConfig`, an MLP as projector, one decoder for text and images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jtok.checkpoints.match import Part
from jtok.checkpoints.safetensor_files import Weights
from jtok.checkpoints.vit_names import CLIP_NAMES
from jtok.checkpoints.vlm_names import NEWLINE_NAMES, PROJECTOR_NAMES
from jtok.errors import UserError
from jtok.layers.activations import activation_named
from jtok.layers.projector import ProjectorConfig
from jtok.models.decoder.decoder import DecoderConfig, Dtype
from jtok.models.decoder.language_config import decoder_config
from jtok.models.decoder.language_part import language_part
from jtok.models.towers.infer import config_from_transformers
from jtok.models.towers.vit import ViTConfig
from jtok.models.vlm.network import VLMConfig


@dataclasses.dataclass(frozen=True)
class _Stated(Weights):
    """A checkpoint as a directory of its tower alone would state it: just the config."""

    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.stated


def llava_config(
    path: str | os.PathLike,
    stated: Mapping[str, Any],
    dtype: Dtype,
    *,
    family: str,
    defaults: Mapping[str, Any],
    decoder: str = "llama",
    newline: bool = False,
) -> VLMConfig:
    """The config of a model of LLaVA's build from its config.json, `stated`.

    defaults: what config.json leaves out. decoder: `model_type` of a text_config that names none. newline: as in
    `VLMConfig`. Raises UserError, one sentence each, for what jtok does not have.
    """
    fields = with_defaults(stated, defaults)
    tower = vit_tower(path, fields, dtype)
    language = vit_language(path, fields, decoder, dtype)
    act = activation_named(fields.get("projector_hidden_act", "gelu"), path, "in its projector")
    bias = fields.get("multimodal_projector_bias", True)
    projector = ProjectorConfig(tower.width, language.width, act=act, bias=bias)
    return VLMConfig(family, tower, projector, language, image_token(fields), tower.class_token, newline)


def with_defaults(stated: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json, and `defaults` for those that are left out or null."""
    return {**defaults, **{name: value for name, value in stated.items() if value is not None}}


def image_token(fields: Mapping[str, Any]) -> int:
    """The id of the placeholder for a visual token."""
    return fields.get("image_token_id", fields["image_token_index"])


def vit_tower(
    path: str | os.PathLike,
    fields: Mapping[str, Any],
    dtype: Dtype,
    final_norm: Literal["tokens", "none"] = "none",
) -> ViTConfig:
    """The tower, as deep as the layer whose features are taken, by default before the last norm.

    Raises UserError for a layer that does not exist, and for a class token that is passed to the decoder.
    """
    stated = dict(fields.get("vision_config") or {"model_type": "clip_vision_model"})
    whole = config_from_transformers(_Stated(Path(path), {}, {}, {}, stated))
    layer = fields["vision_feature_layer"]
    if not isinstance(layer, int) or not -whole.depth - 1 <= layer <= whole.depth:
        raise UserError(f"'{path}' takes features of tower layers {layer}: jtok takes one layer of {whole.depth}.")
    depth = layer + whole.depth + 1 if layer < 0 else layer
    tower = dataclasses.replace(whole, depth=depth, final_norm=final_norm, head="none", dtype=dtype)
    if tower.class_token and fields["vision_feature_select_strategy"] != "default":
        raise UserError(f"'{path}' feeds the tower's class token to the decoder: jtok takes the strategy 'default'.")
    return tower


def vit_language(
    path: str | os.PathLike, fields: Mapping[str, Any], kind: str, dtype: Dtype, **extra: Any
) -> DecoderConfig:
    """The decoder's config.

    kind: `model_type` of a text_config that names none. extra: fields of `DecoderConfig`.
    """
    text = {"model_type": kind, **(fields.get("text_config") or {})}
    if text.get("tie_word_embeddings") is None and "tie_word_embeddings" in fields:
        text["tie_word_embeddings"] = fields["tie_word_embeddings"]
    return decoder_config(text, path, dtype=dtype, storage=dtype, **extra)


def llava_parts(config: VLMConfig) -> dict[str, Part]:
    """How the tensors are read; the file's tower may have layers after those whose features are used."""
    tower = config.tower
    parts = {
        "tower": Part(CLIP_NAMES, tower, tower.depth, spare=("norm", "pool"), cut=True),
        "projector": Part(PROJECTOR_NAMES, config.projector),
        "language": language_part(config.language),
    }
    return parts | ({"newline": Part(NEWLINE_NAMES, config.language)} if config.newline else {})
