"""A tiny vision-language model of random weights that needs no transformers: for `tests.models.language.prompts`."""

from __future__ import annotations

import functools

from flax import nnx

from jtok.layers.projector import ProjectorConfig
from jtok.models.decoder.decoder import DecoderConfig
from jtok.models.towers.vit import ViTConfig
from jtok.models.vlm.model import VLM
from jtok.models.vlm.network import VLMConfig
from tests.models.language import IMAGE


@functools.cache
def tiny() -> VLM:
    """56 pixels in 4 x 4 patches, a tower of 1 layer and a decoder of 4."""
    config = VLMConfig(
        family="llava",
        tower=ViTConfig(image=56, patch=14, width=16, depth=1, heads=2, mlp=32, classes=0),
        projector=ProjectorConfig(inputs=16, width=32),
        language=DecoderConfig(vocabulary=128, width=32, depth=4, heads=4, kv_heads=2, head_dim=8, mlp=48),
        image_token=IMAGE,
    )
    params = nnx.to_pure_dict(nnx.state(config.network(nnx.Rngs(0)), nnx.Param))
    return VLM(config, params)
