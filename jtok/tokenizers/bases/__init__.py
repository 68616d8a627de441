"""Frozen 2-D base tokenizers of others: AutoencoderKL, KL-16, VQGAN and MaskGIT's VQGAN."""

from jtok.tokenizers.bases.autoencoder_kl import AutoencoderKL, KLConfig
from jtok.tokenizers.bases.open_base import open_base
from jtok.tokenizers.bases.vqgan import VQGAN, VQGANConfig

__all__ = ["VQGAN", "AutoencoderKL", "KLConfig", "VQGANConfig", "open_base"]
