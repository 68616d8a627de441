"""The `ViTConfig` of a checkpoint: from the config.json of transformers, or from the tensors of a timm file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jtok.checkpoints.safetensor_files import Weights
from jtok.checkpoints.vit_names import IGNORED, split_name
from jtok.errors import UserError
from jtok.layers.activations import activation_named
from jtok.models.towers.presets import PRESETS
from jtok.models.towers.vit import ViTConfig

#: What transformers takes for a field that a config.json leaves out; published nested configs hold differences only.
_COMMON = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3}
_IMAGE = {**_COMMON, "image_size": 224, "patch_size": 16}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True}
_VIT = {**_IMAGE, "intermediate_size": 3072, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True}
_DINO = {"mlp_ratio": 4, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "use_swiglu_ffn": False, "qkv_bias": True}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {**_IMAGE, "patch_size": 32, "intermediate_size": 3072, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip": {**_IMAGE, "intermediate_size": 3072, **_SIGLIP},
    "siglip2": {**_COMMON, "patch_size": 16, "num_patches": 256, "intermediate_size": 3072, **_SIGLIP},
    "dinov2": {**_IMAGE, "patch_size": 14, **_DINO},
    "dinov2_with_registers": {**_IMAGE, **_DINO, "num_register_tokens": 4},
    "vit": _VIT,
    "deit": _VIT,
}


def config_from_transformers(weights: Weights) -> ViTConfig:
    """The config that a Hugging Face directory states. Raises UserError for models that are no vision tower we know."""
    stated = weights.config or {}
    kind = str(stated.get("model_type", "")).removesuffix("_vision_model")
    if kind not in _DEFAULTS:
        known = ", ".join(_DEFAULTS)
        raise UserError(
            f"'{weights.source}' has no config.json of a vision tower that jtok loads (model_type '{kind}'): "
            f"give a directory of {known}."
        )
    fields = {**_DEFAULTS[kind], **(stated.get("vision_config") or stated)}
    common = {
        "patch": _square(weights, "patch_size", fields["patch_size"]),
        "width": fields["hidden_size"],
        "depth": fields["num_hidden_layers"],
        "heads": fields["num_attention_heads"],
        "channels": fields["num_channels"],
        "act": activation_named(fields["hidden_act"], weights.source),
        "eps": fields["layer_norm_eps"],
    }
    if kind == "siglip2":
        common["table"] = _side(weights, fields["num_patches"])
        common["image"] = common["table"] * common["patch"]
    else:
        common["image"] = _square(weights, "image_size", fields["image_size"])
        common["crop"] = common["image"] % common["patch"] > 0
    return ViTConfig(**common, **_family(kind, fields, _shapes(weights)))


def _family(kind: str, fields: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Fields that differ between families."""
    if kind == "clip":
        return {"mlp": fields["intermediate_size"], "pre_norm": True, "patch_bias": False, "final_norm": "pooled"}
    if kind in ("siglip", "siglip2"):
        head = "map" if fields["vision_use_head"] else "none"
        return {"mlp": fields["intermediate_size"], "class_token": False, "head": head, "packed": kind == "siglip2"}
    classifier = shapes.get("classifier.weight") or shapes.get("cls_classifier.weight") or (0,)
    if kind in ("vit", "deit"):
        head = "distill" if "distillation_classifier.weight" in shapes else "class"
        family_fields = {"mlp": fields["intermediate_size"], "distill_token": kind == "deit", "head": head}
    else:
        hidden, gated = int(fields["hidden_size"] * fields["mlp_ratio"]), fields["use_swiglu_ffn"]
        registers = fields.get("num_register_tokens", 0)
        family_fields = {"mlp": (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden, "layer_scale": True}
        family_fields |= {"mlp_kind": "swiglu" if gated else "mlp", "registers": registers, "antialias": registers > 0}
    return {**family_fields, "qkv_bias": fields["qkv_bias"], "classes": classifier[0]}


def config_from_timm(weights: Weights, fields: Mapping[str, Any]) -> ViTConfig:
    """The config that the shapes of a timm file imply, with `fields` for what they do not determine.

    The shapes do not determine the number of heads, which is that of the preset of the same width, else one for every
    64 channels; the activation, which is gelu (tanh form where tokens are pooled by attention, as in SigLIP, quick_gelu
    where the architecture in config.json says so); the norms' epsilon, 1e-6 (1e-5 where tokens are normalised before
    the first block, as in CLIP). Raises UserError where these rules give no answer.
    """
    shapes = _shapes(weights)
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    depth = 1 + max((layer for layer, _ in map(split_name, weights.shapes) if layer is not None), default=-1)
    leading = int("cls_token" in shapes) + int("dist_token" in shapes)
    rows = shapes.get("pos_embed", (1, 0, 0))[-2]
    class_position = math.isqrt(max(rows - leading, 0)) ** 2 == rows - leading
    mlp, clip = shapes.get("mlp.fc2.weight", (0, 0))[-1], "norm_pre.weight" in shapes
    inferred = {
        "image": _side(weights, rows - leading * class_position) * patch,
        "patch": patch,
        "width": width,
        "depth": depth,
        "mlp": mlp,
        "channels": channels,
        "classes": shapes.get("head.weight", (0,))[0],
        "class_token": "cls_token" in shapes,
        "distill_token": "dist_token" in shapes,
        "registers": shapes.get("reg_token", (1, 0, 0))[-2],
        "class_position": class_position,
        "antialias": True,
        "head": _timm_head(shapes),
        "act": _timm_act(weights, shapes),
        "mlp_kind": "swiglu" if shapes.get("mlp.fc1.weight", (0,))[0] == 2 * mlp else "mlp",
        "eps": 1e-5 if clip else 1e-6,
        "qkv_bias": "attn.qkv.bias" in shapes,
        "patch_bias": "patch_embed.proj.bias" in shapes,
        "pre_norm": clip,
        "layer_scale": "ls1.gamma" in shapes,
        "final_norm": "pooled" if "fc_norm.weight" in shapes else "tokens",
        **fields,
    }
    return ViTConfig(**{"heads": inferred.get("heads") or _heads(weights, width), **inferred})


def _timm_act(weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> str:
    if "attn_pool.latent" in shapes:
        return "gelu_tanh"
    return "quick_gelu" if "quickgelu" in str((weights.config or {}).get("architecture")) else "gelu"


def _timm_head(shapes: Mapping[str, tuple[int, ...]]) -> str:
    if "attn_pool.latent" in shapes:
        return "map"
    if "head_dist.weight" in shapes:
        return "distill"
    return "mean" if "fc_norm.weight" in shapes or "cls_token" not in shapes else "class"


def _heads(weights: Weights, width: int) -> int:
    for preset in PRESETS.values():
        if preset["width"] == width:
            return preset["heads"]
    if width % 64:
        raise UserError(f"'{weights.source}' does not state its number of attention heads: set the field 'heads'.")
    return width // 64


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Shapes under normalised names; of the layers, the last one's."""
    return {split_name(n)[1]: shape for n, shape in weights.shapes.items() if not IGNORED.search(n)}


def _square(weights: Weights, name: str, value: Any) -> int:
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(set(sides)) != 1:
        raise UserError(f"'{weights.source}' has {name} {sides}: jtok loads square position tables and patches only.")
    return int(sides[0])


def _side(weights: Weights, rows: int) -> int:
    side = math.isqrt(max(rows, 0))
    if side == 0 or side * side != rows:
        raise UserError(f"'{weights.source}' has a position table of {rows} patches, which is not a square.")
    return side
