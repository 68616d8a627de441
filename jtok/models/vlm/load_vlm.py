"""Loads decoders and vision-language models from Hugging Face directories; weights stream to their dtype and place."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from jtok.checkpoints.match import Part
from jtok.checkpoints.read import read
from jtok.checkpoints.safetensor_files import Weights, open_weights, read_json
from jtok.checkpoints.vit_names import CLIP_NAMES
from jtok.checkpoints.vlm_names import LANGUAGE_NAMES, NEWLINE_NAMES, PROJECTOR_NAMES, QWEN_NAMES, VLM
from jtok.errors import UserError
from jtok.layers.activations import activation_named
from jtok.layers.projector import ProjectorConfig
from jtok.models.decoder.decoder import Decoder, DecoderConfig, Dtype
from jtok.models.decoder.language_config import decoder_config
from jtok.models.towers.infer import config_from_transformers
from jtok.models.towers.qwen_vision import QwenVisionConfig
from jtok.models.towers.vit import ViTConfig
from jtok.models.vlm.families.mllama.load import mllama_config, mllama_parts
from jtok.models.vlm.families.mllama.network import MllamaConfig
from jtok.models.vlm.families.qwen2_5_vl.load import qwen_config
from jtok.models.vlm.network import VLMConfig
from jtok.sharding import placed

AnyConfig = VLMConfig | MllamaConfig

#: What config.json leaves out, by family: layer of the tower whose features are taken, and what of them.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llava": {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_token_index": 32000},
    "llava_next": {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_token_index": 32000},
    "llava_onevision": {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_token_index": 151646,
    },
    "paligemma": {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", "image_token_index": 256000},
}
#: Families with a tower of their own, and what makes their configs of (directory, config.json, dtype).
_BUILDERS: dict[str, Callable[..., AnyConfig]] = {"qwen2_5_vl": qwen_config, "mllama": mllama_config}


@dataclasses.dataclass(frozen=True)
class _Stated(Weights):
    """A checkpoint as a directory of its tower alone would state it: just the config."""

    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.stated


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The config.json of a checkpoint directory. Raises UserError if there is none."""
    path = Path(path)
    if not (path / "config.json").is_file():
        raise UserError(f"'{path}' holds no config.json: give the directory of a Hugging Face checkpoint.")
    return read_json(path / "config.json")


def load_decoder(path: str | os.PathLike, *, dtype: Dtype = "float32") -> tuple[DecoderConfig, dict[str, Any]]:
    """A decoder's config and parameters from a directory of Llama, Mistral, Qwen2, Qwen2.5 or Gemma.

    dtype: of parameters, activations and cache. Raises UserError, one sentence each: not a checkpoint, a model jtok
    does not have, missing shards, missing and unknown tensors (all in one sentence), a tensor of the wrong shape.
    """
    config = decoder_config(read_config(path), path, dtype=dtype, storage=dtype)
    like = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))), nnx.Param))
    parts = {"language": language_part(config)}
    return config, read(open_weights(path), parts, {"language": like}, VLM, on_device=True)["language"]


def language_part(config: DecoderConfig) -> Part:
    """How the tensors of a decoder are read; files of models with tied embeddings may hold the table twice."""
    return Part(LANGUAGE_NAMES, config, config.depth, spare=("head",) if config.tied else ())


def vlm_config(path: str | os.PathLike, *, dtype: Dtype = "float32") -> AnyConfig:
    """The config of a vision-language model, from its directory's config.json alone.

    Raises UserError, one sentence each, for a directory without one and for models that jtok does not have.
    """
    stated = read_config(path)
    family = str(stated.get("model_type", ""))
    if family in _BUILDERS:
        return _BUILDERS[family](path, stated, dtype)
    if family not in _FAMILIES:
        known = ", ".join([*_FAMILIES, *_BUILDERS])
        raise UserError(f"'{path}' holds a model of type '{family}': jtok answers with {known}.")
    fields = {**_FAMILIES[family], **{k: v for k, v in stated.items() if v is not None}}
    drop_class = fields["vision_feature_select_strategy"] == "default"
    tower = _tower(path, fields, family, dtype)
    if tower.class_token and not drop_class:
        raise UserError(f"'{path}' feeds the tower's class token to the decoder: jtok takes the strategy 'default'.")
    kind = {"paligemma": "gemma", "llava_onevision": "qwen2"}.get(family, "llama")
    text = {"model_type": kind, **(fields.get("text_config") or {})}
    tied = text.get("tie_word_embeddings")
    if tied is None and "tie_word_embeddings" in stated:
        text["tie_word_embeddings"] = stated["tie_word_embeddings"]
    language = decoder_config(text, path, dtype=dtype, storage=dtype, bidirectional=family == "paligemma")
    return VLMConfig(
        family=family,
        tower=tower,
        projector=_projector(path, fields, family, tower.width, language.width),
        language=language,
        image_token=fields.get("image_token_id", fields["image_token_index"]),
        drop_class=tower.class_token,
        newline=family in ("llava_next", "llava_onevision"),
    )


def load_vlm(
    path: str | os.PathLike, *, dtype: Dtype = "float32", mesh: Mesh | None = None
) -> tuple[AnyConfig, dict[str, Any]]:
    """A vision-language model's config and parameters from a Hugging Face directory of one of `_FAMILIES`.

    dtype: of the decoder's parameters and of all activations; tower and projector keep float32 parameters. mesh: the
    devices that share the parameters (`jtok.sharding`), which are read to their places; None: the first one. Raises
    UserError as `load_decoder` does; the config is checked before any weight is read.
    """
    config = vlm_config(path, dtype=dtype)
    like = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config.network(nnx.Rngs(0))), nnx.Param))
    like = like if mesh is None else placed(like, mesh)
    if isinstance(config, MllamaConfig):
        return config, read(open_weights(path), mllama_parts(config), like, VLM, on_device=True)
    parts = {
        "tower": _tower_part(config.tower),
        "projector": Part(PROJECTOR_NAMES, config.projector),
        "language": language_part(config.language),
    }
    if config.newline:
        parts["newline"] = Part(NEWLINE_NAMES, config.language)
    return config, read(open_weights(path), parts, like, VLM, on_device=True)


def _tower_part(config: ViTConfig | QwenVisionConfig) -> Part:
    if isinstance(config, QwenVisionConfig):
        return Part(QWEN_NAMES, config, config.depth)
    return Part(CLIP_NAMES, config, config.depth, spare=("norm", "pool"), cut=True)


def _tower(path: str | os.PathLike, fields: Mapping[str, Any], family: str, dtype: Dtype) -> ViTConfig:
    stated = dict(fields.get("vision_config") or {"model_type": "clip_vision_model"})
    whole = config_from_transformers(_Stated(Path(path), {}, {}, {}, stated))
    layer = fields["vision_feature_layer"]
    if not isinstance(layer, int) or not -whole.depth - 1 <= layer <= whole.depth:
        raise UserError(f"'{path}' takes features of tower layers {layer}: jtok takes one layer of {whole.depth}.")
    depth = layer + whole.depth + 1 if layer < 0 else layer
    norm = "tokens" if family == "paligemma" else "none"  # the others take features before the last norm
    return dataclasses.replace(whole, depth=depth, final_norm=norm, head="none", dtype=dtype)


def _projector(
    path: str | os.PathLike, fields: Mapping[str, Any], family: str, inputs: int, width: int
) -> ProjectorConfig:
    if family == "paligemma":
        return ProjectorConfig(inputs, width, depth=1)
    act = activation_named(fields.get("projector_hidden_act", "gelu"), path, "in its projector")
    return ProjectorConfig(inputs, width, act=act, bias=fields.get("multimodal_projector_bias", True))
