"""MaskGIT's VQGAN in PyTorch's names: the base of ALIT and KARL (MAGE's file), and what a two-stage TiTok learns from.

"MaskGIT: Masked Generative Image Transformer", arXiv:2202.04200; "MAGE: Masked Generative Encoder to Unify
Representation Learning and Image Synthesis", arXiv:2211.09117. It has no attention and reads pixels in [0,1]; the codes
of an image (`VQGAN.ids`) are the targets of TiTok's first stage.
"""

from __future__ import annotations

from collections.abc import Mapping

from jtok.tokenizers.autoencoder import ConvShape
from jtok.tokenizers.bases.vqgan import VQGANConfig


def maskgit_config(shape: ConvShape, tensors: Mapping[str, tuple[int, ...]], naming: str) -> VQGANConfig:
    """The config of MAGE's vqgan_jax_strongaug or of TiTok's maskgit-vqgan-imagenet-f16-256."""
    codes, width = tensors["quantize.embedding.weight"]
    coding = "quant_conv.weight" in tensors
    return VQGANConfig(shape, codes, width, coding=coding, signed=False, naming=naming)
