"""Writes a LLaVA-1.5-shaped model as a Hugging Face directory, which jtok and transformers load alike."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jtok.checkpoints.rules import Rule
from jtok.checkpoints.safetensor_files import write_safetensors
from jtok.checkpoints.trees import flatten
from jtok.checkpoints.vit_names import CLIP_NAMES
from jtok.checkpoints.vlm_names import LANGUAGE_NAMES, PROJECTOR_NAMES
from jtok.checkpoints.write import released
from jtok.files import write_text
from jtok.models.vlm.network import VLMConfig

_LEADS = {
    "tower": ("vision_tower.vision_model.", "encoder."),
    "projector": ("multi_modal_projector.", ""),
    "language": ("language_model.model.", ""),
}


def save_llava(
    directory: str | os.PathLike,
    config: VLMConfig,
    params: Mapping[str, Any],
    *,
    files: Mapping[str, Mapping[str, Any] | str],
    metadata: Mapping[str, str] | None = None,
    storage: Literal["float32", "bfloat16"] = "bfloat16",
) -> Path:
    """Writes config.json, model.safetensors and `files` (name to JSON object or text) to a directory.

    The weights come last, so that a directory with weights is whole. Returns the path of the weights.
    """
    directory = Path(directory)
    for name, content in {"config.json": hugging_face_config(config, storage), **files}.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        write_text(directory / name, text)
    tensors = {name: a.astype(jnp.dtype(storage)) for name, a in released_tensors(config, params)}
    path = directory / "model.safetensors"
    write_safetensors(path, tensors, {"format": "pt", **(metadata or {})})
    return path


def hugging_face_config(config: VLMConfig, storage: str) -> dict[str, Any]:
    """config.json of a LlavaForConditionalGeneration."""
    tower, language = config.tower, config.language
    return {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": config.image_token,
        "image_seq_length": config.grid[0] * config.grid[1],
        "projector_hidden_act": config.projector.act,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "torch_dtype": storage,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": tower.width,
            "intermediate_size": tower.mlp,
            "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads,
            "image_size": tower.image,
            "patch_size": tower.patch,
            "hidden_act": tower.act,
            "layer_norm_eps": tower.eps,
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": language.vocabulary,
            "hidden_size": language.width,
            "intermediate_size": language.mlp,
            "num_hidden_layers": language.depth,
            "num_attention_heads": language.heads,
            "num_key_value_heads": language.kv_heads,
            "head_dim": language.head_dim,
            "hidden_act": language.act,
            "rms_norm_eps": language.eps,
            "rope_theta": language.rotary.theta,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": language.tied,
        },
    }


def released_tensors(config: VLMConfig, params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32 array) of every tensor of the model, as transformers names and lays them."""
    parts = {
        "tower": (CLIP_NAMES, config.tower),
        "projector": (PROJECTOR_NAMES, config.projector),
        "language": (LANGUAGE_NAMES, config.language),
    }
    for part, (table, shape) in parts.items():
        ours = {path: np.asarray(a, np.float32) for path, a in flatten(params[part]).items()}
        if part == "tower":  # transformers has a last norm, which features of a layer do not pass
            ours |= {"norm.scale": np.ones(shape.width, np.float32), "norm.bias": np.zeros(shape.width, np.float32)}
        yield from released(ours, shape, table, functools.partial(_spell, _LEADS[part])).items()


def _spell(leads: tuple[str, str], rule: Rule, layer: int | None) -> str:
    lead, inside = leads
    if layer is not None:
        return f"{lead}{inside}layers.{layer}.{rule.names[0]}"
    return f"{'language_model.' if rule.path == 'head' else lead}{rule.names[0]}"
