"""Opens the file of any base tokenizer: its tensors determine which one it is and its sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from flax import nnx

from jtok.checkpoints.safetensor_files import Weights, open_weights
from jtok.errors import UserError
from jtok.tokenizers.autoencoder_names import find_naming, find_shape
from jtok.tokenizers.base_grid import frozen
from jtok.tokenizers.bases.autoencoder_kl import AutoencoderKL, KLConfig, diffusers_config
from jtok.tokenizers.bases.kl16 import kl16_config
from jtok.tokenizers.bases.maskgit_vqgan import maskgit_config
from jtok.tokenizers.bases.vqgan import VQGAN, VQGANConfig, taming_config
from jtok.tokenizers.released import fill

KINDS = "diffusers' AutoencoderKL, MAR's KL-16, taming-transformers' VQGAN or MaskGIT's"
#: Name of the encoder's first tensor in all of them, after the prefix.
FIRST = "encoder.conv_in.weight"


def open_base(source: str | os.PathLike | Weights, *, stated: Mapping[str, Any] | None = None) -> AutoencoderKL | VQGAN:
    """The base tokenizer of a safetensors file or directory, alone or inside the checkpoint of a tokenizer built on it.

    Its parameters are `Frozen`. stated: fields of a config.json of diffusers (default: the one beside the file).
    Raises UserError for files of anything else, pickles, missing and unknown tensors, and wrong shapes.
    """
    weights = source if isinstance(source, Weights) else open_weights(source)
    prefix = base_prefix(weights)
    naming = None if prefix is None else find_naming(weights.shapes, prefix)
    if naming is None:
        raise UserError(f"'{weights.source}' holds no base tokenizer: give the file of {KINDS}.")
    config = _config(weights, prefix, naming, stated)
    made = AutoencoderKL if isinstance(config, KLConfig) else VQGAN
    net = nnx.eval_shape(lambda: made(config, nnx.Rngs(0)))
    ignored = [prefix + part for part in ("loss.", "model_ema.", "logvar")]  # of their training
    return frozen(fill(net, weights, net.names(), ignored, under=prefix))


def base_prefix(weights: Weights) -> str | None:
    """What the names of a base's tensors begin with, None if there is no base in the checkpoint."""
    prefixes = [name.removesuffix(FIRST) for name in weights.shapes if name.endswith(FIRST)]
    return prefixes[0] if len(prefixes) == 1 else None


def _config(weights: Weights, prefix: str, naming: str, stated: Mapping[str, Any] | None) -> KLConfig | VQGANConfig:
    shape = find_shape(weights.shapes, prefix, naming, str(weights.source))
    tensors = {name.removeprefix(prefix): s for name, s in weights.shapes.items() if name.startswith(prefix)}
    if naming.startswith("diffusers"):
        stated = stated if stated is not None else weights.config if not prefix else None
        if stated is None:
            raise UserError(f"'{weights.source}' has no config.json beside it, which states its scaling_factor.")
        return diffusers_config(shape, tensors, naming, stated)
    if "quantize.embedding.weight" not in tensors:
        return kl16_config(shape, tensors, naming, fine_tuned=prefix.startswith("base_tokenizer."))
    return (maskgit_config if shape.style == "maskgit" else taming_config)(shape, tensors, naming)
