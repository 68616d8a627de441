"""Shapes of LLaVA-1.5 (arXiv:2310.03744), and of smaller models of its build."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from jtok.layers.projector import ProjectorConfig
from jtok.models.decoder.decoder import DecoderConfig, Dtype
from jtok.models.towers.vit import ViTConfig
from jtok.models.vlm.network import VLMConfig

_CLIP = {"pre_norm": True, "patch_bias": False, "act": "quick_gelu", "eps": 1e-5, "final_norm": "none", "head": "none"}


def _tower(width: int, layers: int, heads: int, image: int = 336) -> dict[str, Any]:
    """CLIP's tower, with the features of its penultimate layer, as LLaVA uses them."""
    return {"image": image, "patch": 14, "width": width, "depth": layers - 1, "heads": heads, "mlp": 4 * width, **_CLIP}


def _llama(width: int, depth: int, heads: int, mlp: int, vocabulary: int = 32064) -> dict[str, Any]:
    sizes = {"width": width, "depth": depth, "heads": heads, "kv_heads": heads, "head_dim": width // heads, "mlp": mlp}
    return {**sizes, "vocabulary": vocabulary, "eps": 1e-5}


def _config(tower: Mapping[str, Any], language: Mapping[str, Any], dtype: Dtype) -> VLMConfig:
    return VLMConfig(
        family="llava",
        tower=ViTConfig(**tower, dtype=dtype),
        projector=ProjectorConfig(tower["width"], language["width"]),
        language=DecoderConfig(**language, dtype=dtype, storage=dtype),
        image_token=language["vocabulary"] - 1,
    )


#: Shape -> what makes its config at a dtype. `llava-cpu` has the 576 visual tokens and the depth of the tower; it has
#: half the layers, and a vocabulary in proportion to its width.
PRESETS: dict[str, Callable[[Dtype], VLMConfig]] = {
    "llava-1.5-7b": functools.partial(_config, _tower(1024, 24, 16), _llama(4096, 32, 32, 11008)),
    "llava-1.5-13b": functools.partial(_config, _tower(1024, 24, 16), _llama(5120, 40, 40, 13824)),
    "llava-cpu": functools.partial(_config, _tower(128, 24, 2), _llama(256, 16, 4, 688, 2048)),
    "llava-tiny": functools.partial(_config, _tower(32, 4, 2, image=56), _llama(48, 4, 4, 96, 128)),
}
