"""Answers a question with a checkpoint, step by step: bad input is refused before any weights are read."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jtok.checkpoints.safetensor_files import open_weights
from jtok.errors import UserError
from jtok.models.decoder.decoder import Dtype
from jtok.models.decoder.generate import State
from jtok.models.vlm.load_vlm import load_vlm, vlm_config
from jtok.models.vlm.model import VLM
from jtok.models.vlm.network import PrefillOutput
from jtok.models.vlm.processing import load_processor


def describe(path: str | os.PathLike, *, dtype: Dtype = "float32") -> VLM:
    """The model of a Hugging Face directory without its parameters: enough to make plans and inputs for it.

    Raises UserError, one sentence each, for what `jtok.load` refuses in the configs and the tokenizer, and for missing
    shards.
    """
    if not Path(path).is_dir():
        raise UserError(f"there is no directory '{path}': give that of a Hugging Face checkpoint.")
    config = vlm_config(path, dtype=dtype)
    processor = load_processor(path)
    open_weights(path)  # headers only
    return VLM(config, {}, processor=processor)


def with_weights(model: VLM, path: str | os.PathLike, *, dtype: Dtype = "float32", mesh: Mesh | None = None) -> VLM:
    """A model that `describe` made, with the parameters of its directory, on a mesh as `jtok.load` puts them."""
    return dataclasses.replace(model, params=load_vlm(path, dtype=dtype, mesh=mesh)[1])


def rehearse(model: VLM, inputs: Any, max_new_tokens: int) -> None:
    """Traces the prefill of a prompt without parameters: raises the UserErrors that the prefill would raise."""
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: model.config.network(nnx.Rngs(0))), nnx.Param))
    jax.eval_shape(
        lambda p: dataclasses.replace(model, params=p).read(inputs, max_new_tokens=max_new_tokens, key=_keys(0)), params
    )


def read(model: VLM, inputs: Any, *, max_new_tokens: int, seed: int = 0) -> tuple[PrefillOutput, State]:
    """The output of one prompt's prefill, and the state from which decoding starts."""
    keys = _keys(seed)
    output = model.read(inputs, max_new_tokens=max_new_tokens, key=keys)
    return output, State(output.caches, output.logits, np.zeros(1, bool), keys, output.second)


def _keys(seed: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), 1)
