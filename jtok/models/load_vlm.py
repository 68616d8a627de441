"""Loads decoders and vision-language models from Hugging Face directories; weights stream to their dtype and place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flax import nnx

from jtok.errors import UserError
from jtok.models.decoder import Decoder, DecoderConfig, Dtype
from jtok.models.language_config import decoder_config
from jtok.models.safetensor_files import open_weights, read_json
from jtok.models.stream import Part, read
from jtok.models.vlm_names import LANGUAGE_NAMES


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
    return config, read(open_weights(path), parts, {"language": like})["language"]


def language_part(config: DecoderConfig) -> Part:
    """How the tensors of a decoder are read; files of models with tied embeddings may hold the table twice."""
    return Part(LANGUAGE_NAMES, config, config.depth, spare=("head",) if config.tied else ())
