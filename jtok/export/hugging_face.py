"""A tower under the names of transformers or timm, in a directory that those libraries load."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jtok.checkpoints.rules import Rule
from jtok.checkpoints.safetensor_files import write_safetensors
from jtok.checkpoints.trees import flatten
from jtok.checkpoints.vit_names import CLIP_NAMES, TIMM_NAMES, VIT_NAMES
from jtok.checkpoints.write import released
from jtok.errors import UserError
from jtok.layers.activations import TRANSFORMERS_NAMES
from jtok.models.towers.load import load_vit
from jtok.models.towers.vit import ViTConfig

Names = Literal["transformers", "timm"]

#: Fields that weight files do not record: how it is computed, and how its position table would be resized.
_FREE = {"dtype", "remat", "antialias"}


@dataclasses.dataclass(frozen=True)
class _Family:
    """How a family of transformers spells what ours have: its table, the name of its classes, and which of several
    spellings (a pattern; the first spelling where none matches)."""

    table: list[Rule]
    classes: str
    spelling: str = "$^"
    lead: str = ""  # before all but the classifiers, where there are any


_FAMILIES = {
    "clip_vision_model": _Family(CLIP_NAMES, "CLIPVision"),
    "siglip_vision_model": _Family(CLIP_NAMES, "SiglipVision"),
    "siglip2_vision_model": _Family(CLIP_NAMES, "Siglip2Vision"),
    "vit": _Family(VIT_NAMES, "ViT", lead="vit."),
    "deit": _Family(VIT_NAMES, "DeiT", r"cls_classifier\.", lead="deit."),
    "dinov2": _Family(VIT_NAMES, "Dinov2", r"norm\d\.|mlp\.fc\d\."),
    "dinov2_with_registers": _Family(VIT_NAMES, "Dinov2WithRegisters", r"norm\d\.|mlp\.fc\d\."),
}


def save_tower(
    directory: Path, config: ViTConfig, params: Mapping[str, Any], names: Names = "transformers", storage="float32"
) -> dict[str, Any]:
    """Writes config.json and model.safetensors into an existing directory; returns the config.

    The files are read back and must give the same tower, so that none is written that another library would take for
    another model. Raises UserError if no family of `names` has the tower's settings.
    """
    ours = {path: np.asarray(a, np.float32) for path, a in flatten(params).items()}
    tensors, stated = _timm(config, ours) if names == "timm" else _transformers(config, ours)
    if names == "transformers":
        stated["dtype"] = storage
    stored = {name: a.astype(jnp.dtype(storage)) for name, a in tensors.items()}
    (directory / "config.json").write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    write_safetensors(directory / "model.safetensors", stored, {"format": "pt"})
    _check(directory, config, ours, names, storage)
    return stated


def family_of(config: ViTConfig) -> str:
    """The model_type of transformers that comes nearest to a tower."""
    if not config.class_token:
        return "siglip2_vision_model" if config.packed else "siglip_vision_model"
    if config.pre_norm:
        return "clip_vision_model"
    if config.layer_scale:
        return "dinov2_with_registers" if config.registers else "dinov2"
    return "deit" if config.distill_token else "vit"


def _transformers(config: ViTConfig, ours: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    kind = family_of(config)
    if kind.startswith("dinov2") and config.classes:
        raise UserError("transformers' classifier on DINOv2 reads other features than this one: export as stablehlo.")
    family = _FAMILIES[kind]
    pattern = (
        family.spelling.replace(r"fc\d", r"weights_(?:in|out)") if config.mlp_kind == "swiglu" else family.spelling
    )
    block = "encoder.layers" if family.table is CLIP_NAMES else "encoder.layer"

    def spell(rule: Rule, layer: int | None) -> str:
        name = _spelling(rule, pattern)
        lead = family.lead if config.classes and "classifier" not in name else ""
        return f"{lead}{name}" if layer is None else f"{lead}{block}.{layer}.{name}"

    return released(ours, config, family.table, spell), _transformers_config(kind, family.classes, config)


def _spelling(rule: Rule, pattern: str) -> str:
    return next((name for name in rule.names if re.match(pattern, name)), rule.names[0])


def _transformers_config(kind: str, classes: str, c: ViTConfig) -> dict[str, Any]:
    ending = "Model"
    if c.classes:
        ending = "ForImageClassificationWithTeacher" if c.head == "distill" else "ForImageClassification"
    stated: dict[str, Any] = {
        "model_type": kind,
        "architectures": [classes + ending],
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "num_channels": c.channels,
        "patch_size": c.patch,
        "hidden_act": TRANSFORMERS_NAMES[c.act][0],
        "layer_norm_eps": c.eps,
    }
    stated |= {"num_patches": c.side**2} if c.packed else {"image_size": c.image}
    if kind.startswith("dinov2"):
        stated |= {"mlp_ratio": _ratio(c), "qkv_bias": c.qkv_bias}
        stated |= {"use_swiglu_ffn": c.mlp_kind == "swiglu"}
        stated |= {"num_register_tokens": c.registers} if c.registers else {}
    else:
        stated["intermediate_size"] = c.mlp
    if kind in ("vit", "deit"):
        stated["qkv_bias"] = c.qkv_bias
    if kind.startswith("siglip"):
        stated["vision_use_head"] = c.head == "map"
    if c.classes:
        stated["id2label"] = {str(i): f"LABEL_{i}" for i in range(c.classes)}
        stated["label2id"] = {name: int(i) for i, name in stated["id2label"].items()}
    return stated


def _ratio(c: ViTConfig) -> int:
    """DINOv2's whole number that gives the MLP's width, through two thirds and a multiple of 8 if gated; where
    there is none the reading back says so."""
    if c.mlp_kind == "mlp":
        return max(1, c.mlp // c.width)
    return next((r for r in range(1, 17) if (int(c.width * r * 2 / 3) + 7) // 8 * 8 == c.mlp), 4)


def _timm(config: ViTConfig, ours: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    pattern = r"fc_norm\." if config.final_norm == "pooled" and config.head == "mean" else "$^"

    def spell(rule: Rule, layer: int | None) -> str:
        return f"{'' if layer is None else f'blocks.{layer}.'}{_spelling(rule, pattern)}"

    tensors = released(ours, config, TIMM_NAMES, spell)
    arguments = {
        "img_size": config.image, "patch_size": config.patch, "embed_dim": config.width, "depth": config.depth,
        "num_heads": config.heads, "mlp_ratio": config.mlp / config.width, "in_chans": config.channels,
    }  # fmt: skip
    return tensors, {"architecture": "vision_transformer", "num_classes": config.classes, "model_args": arguments}


def _check(directory: Path, config: ViTConfig, ours: Mapping[str, np.ndarray], names: str, storage: str) -> None:
    """Raises UserError unless the files give this tower again."""
    given = {f: getattr(config, f) for f in ("heads", "act", "eps", "final_norm", "image")} if names == "timm" else {}
    loaded, params = load_vit(directory, fields=given)
    free = _FREE | ({"image", "table"} if config.packed else set())
    fields = [f.name for f in dataclasses.fields(config) if f.name not in free]
    other = [f for f in fields if getattr(loaded, f) != getattr(config, f)]
    if other:
        model = "timm's vision transformer" if names == "timm" else f"a model of transformers ('{family_of(config)}')"
        said = ", ".join(f"{f} {getattr(config, f)} would be {getattr(loaded, f)}" for f in other)
        raise UserError(f"the tower is not {model} ({said}): export under other names, or as stablehlo.")
    for path, a in flatten(params).items():
        if not np.array_equal(np.asarray(a), ours[path].astype(jnp.dtype(storage)).astype(np.float32)):
            raise RuntimeError(f"{path} is read back as something else than was written")
