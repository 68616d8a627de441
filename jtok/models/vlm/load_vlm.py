"""Loads decoders and vision-language models from Hugging Face directories; weights stream to their dtype and place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from jtok.checkpoints.read import read
from jtok.checkpoints.safetensor_files import open_weights, read_json
from jtok.checkpoints.vlm_names import VLM
from jtok.errors import UserError
from jtok.models.decoder.decoder import Decoder, DecoderConfig, Dtype
from jtok.models.decoder.language_config import decoder_config
from jtok.models.decoder.language_part import language_part
from jtok.models.vlm.families.all import find
from jtok.models.vlm.family import ModelConfig
from jtok.sharding import placed


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


def vlm_config(path: str | os.PathLike, *, dtype: Dtype = "float32") -> ModelConfig:
    """The config of a vision-language model, from its directory's config.json alone.

    Raises UserError, one sentence each, for a directory without one and for models that jtok does not have.
    """
    stated = read_config(path)
    return find(stated.get("model_type"), f"'{path}'").config(path, stated, dtype)


def load_vlm(
    path: str | os.PathLike, *, dtype: Dtype = "float32", mesh: Mesh | None = None
) -> tuple[ModelConfig, dict[str, Any]]:
    """A vision-language model's config and parameters from a Hugging Face directory of one of the families.

    dtype: of the decoder's parameters and of all activations; tower and projector keep float32 parameters. mesh: the
    devices that share the parameters (`jtok.sharding`), which are read to their places; None: the first one. Raises
    UserError as `load_decoder` does; the config is checked before any weight is read.
    """
    config = vlm_config(path, dtype=dtype)
    like = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config.network(nnx.Rngs(0))), nnx.Param))
    like = like if mesh is None else placed(like, mesh)
    return config, read(open_weights(path), find(config.family).parts(config), like, VLM, on_device=True)
