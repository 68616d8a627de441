"""MAR's KL-16: an autoencoder of stride 16 with 16 channels, the base of ALIT and KARL in their VAE variant.

"Autoregressive Image Generation without Vector Quantization" (MAR), arXiv:2406.11838. MAR reads pixels in
[-1,1], and multiplies latents by 0.2325, which it undoes before decoding. The code of ALIT and KARL gives it pixels in
[0,1] and decodes scaled latents as they are, which the decoders in their checkpoints are fine-tuned to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jtok.tokenizers.autoencoder import ConvShape
from jtok.tokenizers.bases.autoencoder_kl import KLConfig

SCALE = 0.2325


def kl16_config(shape: ConvShape, tensors: Mapping[str, Any], naming: str, *, fine_tuned: bool) -> KLConfig:
    """The config of MAR's file, or of what ALIT or KARL made of it (`fine_tuned`)."""
    return KLConfig(
        shape,
        scale=SCALE,
        unscale=not fine_tuned,
        signed=not fine_tuned,
        moments="quant_conv.weight" in tensors,
        decoding="post_quant_conv.weight" in tensors,
        naming=naming,
    )
