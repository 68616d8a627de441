"""Names of tensors in released checkpoints, in every spelling, and where each goes in our parameters.

A name is normalised first (`split_name`: leading module names dropped, the layer number set apart), then looked up in
the table of its format. Spellings of one tensor stand in one entry, separated by spaces; the first one names it in
error messages. Files and modules of transformers differ in their spellings, and so do releases.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

#: Module names that may lead, one or several of them (`vision_tower.vision_model.`, `model.vit.`, `module.`).
_LEADING = re.compile(
    r"^((model|module|base_model|backbone|vision_tower|vision_model|clip|siglip2?|vit|deit|dinov2(_with_registers)?)\.)+"
)
_LAYER = re.compile(r"^(?:encoder\.)?(?:layers?|blocks)\.(\d+)\.(.+)$")

#: Tensors that a vision tower does not use: buffers, the text side and its projections, masks and tanh poolers.
IGNORED = re.compile(
    r"(^|\.)(text_model|text_projection|visual_projection|logit_scale|logit_bias|pooler|mask_token)(\.|$)"
    r"|(^|\.)position_ids$"
)

#: Parts of a checkpoint that a tower may leave out: a model without classifier loads from a file that has one.
HEADS = ("pool.", "head.", "head_distill.")

Where = Callable[[Any], Any]


def split_name(name: str) -> tuple[int | None, str]:
    """(layer or None, rest of the name) without leading module names."""
    name = _LEADING.sub("", name)
    layer = _LAYER.match(name)
    return (int(layer[1]), layer[2]) if layer else (None, name)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor (in each layer, if `path` lies in `blocks`): its spellings, its place, and how it lies in the file.

    `how`: flat - in the same order; linear - [outputs, inputs]; heads - the same, our inputs being [heads, channels];
    patch - a convolution [outputs, channels, rows, columns], our inputs being [rows, columns, channels]; conv - one
    whose inputs are in our order. `at` is the index into our tensor (of one layer) that it fills. `thirds` is the range
    of its first axis that is meant: one tensor of query, key and value fills two of ours. table - the very same shape.
    """

    names: tuple[str, ...]
    path: str
    how: Literal["flat", "linear", "heads", "patch", "conv", "table"]
    at: Where = lambda c: ...
    thirds: tuple[int, int] = (0, 3)

    @property
    def in_layers(self) -> bool:
        """One such tensor for every layer."""
        return self.path.startswith("blocks.")


def _pair(names: str, path: str, weight: str, ours: str, how: Any, at: Where, bias_at: Where) -> list[Rule]:
    spellings = names.split()
    return [
        Rule(tuple(f"{n}.{weight}" for n in spellings), f"{path}.{ours}", how, at),
        Rule(tuple(f"{n}.bias" for n in spellings), f"{path}.bias", "flat", bias_at),
    ]


def _linear(names: str, path: str, at: Where = lambda c: ..., bias_at: Where = lambda c: ...) -> list[Rule]:
    return _pair(names, path, "weight", "kernel", "heads" if path.endswith("out") else "linear", at, bias_at)


def _norm(names: str, path: str) -> list[Rule]:
    return _pair(names, path, "weight", "scale", "flat", lambda c: ..., lambda c: ...)


def _patch(names: str) -> list[Rule]:
    return _pair(names, "patch", "weight", "kernel", "patch", lambda c: ..., lambda c: ...)


def _part(names: str, index: int) -> list[Rule]:
    """Query, key or value projection."""
    return _linear(names, "blocks.attention.qkv", lambda c: (slice(None), index), lambda c: index)


def _half(names: str, second: bool) -> list[Rule]:
    """Gate or value half of the gated MLP."""

    def half(c: Any) -> slice:
        return slice(c.mlp, None) if second else slice(0, c.mlp)

    return _linear(names, "blocks.mlp.up", lambda c: (slice(None), half(c)), half)


def _flat(names: str, path: str, at: Where = lambda c: ..., thirds: tuple[int, int] = (0, 3)) -> Rule:
    return Rule(tuple(names.split()), path, "flat", at, thirds)


def _tokens(class_token: str, distill_token: str, registers: str) -> list[Rule]:
    return [
        _flat(class_token, "special", lambda c: slice(0, int(c.class_token))),
        _flat(distill_token, "special", lambda c: slice(1, 1 + int(c.distill_token))),
        _flat(registers, "special", lambda c: slice(c.special - c.registers, None)),
    ]


def _pool_projections() -> Iterable[Rule]:
    for part, thirds in (("q", (0, 1)), ("kv", (1, 3))):
        yield Rule(("head.attention.in_proj_weight",), f"pool.{part}.kernel", "linear", thirds=thirds)
        yield _flat("head.attention.in_proj_bias", f"pool.{part}.bias", thirds=thirds)


#: transformers: CLIP, SigLIP and SigLIP 2 vision towers.
CLIP_NAMES = [
    _flat("embeddings.class_embedding", "special"),
    *_patch("embeddings.patch_embedding"),
    _flat("embeddings.position_embedding.weight", "position"),
    *_norm("pre_layrnorm pre_layernorm", "pre_norm"),
    *_norm("layer_norm1", "blocks.norm1"),
    *_part("self_attn.q_proj", 0),
    *_part("self_attn.k_proj", 1),
    *_part("self_attn.v_proj", 2),
    *_linear("self_attn.out_proj", "blocks.attention.out"),
    *_norm("layer_norm2", "blocks.norm2"),
    *_linear("mlp.fc1", "blocks.mlp.up"),
    *_linear("mlp.fc2", "blocks.mlp.down"),
    *_norm("post_layernorm", "norm"),
    _flat("head.probe", "pool.probe"),
    *_pool_projections(),
    *_linear("head.attention.out_proj", "pool.out"),
    *_norm("head.layernorm", "pool.norm"),
    *_linear("head.mlp.fc1", "pool.mlp.up"),
    *_linear("head.mlp.fc2", "pool.mlp.down"),
]

#: transformers: ViT, DeiT, DINOv2 with and without registers.
VIT_NAMES = [
    *_tokens("embeddings.cls_token", "embeddings.distillation_token", "embeddings.register_tokens"),
    *_patch("embeddings.patch_embeddings.projection"),
    _flat("embeddings.position_embeddings", "position"),
    *_norm("layernorm_before norm1", "blocks.norm1"),
    *_part("attention.attention.query attention.q_proj", 0),
    *_part("attention.attention.key attention.k_proj", 1),
    *_part("attention.attention.value attention.v_proj", 2),
    *_linear("attention.output.dense attention.o_proj", "blocks.attention.out"),
    _flat("layer_scale1.lambda1", "blocks.scale1"),
    *_norm("layernorm_after norm2", "blocks.norm2"),
    *_linear("intermediate.dense mlp.fc1 mlp.weights_in", "blocks.mlp.up"),
    *_half("mlp.gate_proj", second=False),
    *_half("mlp.up_proj", second=True),
    *_linear("output.dense mlp.fc2 mlp.weights_out mlp.down_proj", "blocks.mlp.down"),
    _flat("layer_scale2.lambda1", "blocks.scale2"),
    *_norm("layernorm", "norm"),
    *_linear("classifier cls_classifier", "head"),
    *_linear("distillation_classifier", "head_distill"),
]

#: timm: its vision transformers of all families.
TIMM_NAMES = [
    *_tokens("cls_token", "dist_token", "reg_token"),
    *_patch("patch_embed.proj"),
    _flat("pos_embed", "position"),
    *_norm("norm_pre", "pre_norm"),
    *_norm("norm1", "blocks.norm1"),
    *_linear("attn.qkv", "blocks.attention.qkv"),
    *_linear("attn.proj", "blocks.attention.out"),
    _flat("ls1.gamma", "blocks.scale1"),
    *_norm("norm2", "blocks.norm2"),
    *_linear("mlp.fc1", "blocks.mlp.up"),
    *_linear("mlp.fc2", "blocks.mlp.down"),
    _flat("ls2.gamma", "blocks.scale2"),
    *_norm("norm fc_norm", "norm"),
    _flat("attn_pool.latent", "pool.probe"),
    *_linear("attn_pool.q", "pool.q"),
    *_linear("attn_pool.kv", "pool.kv"),
    *_linear("attn_pool.proj", "pool.out"),
    *_norm("attn_pool.norm", "pool.norm"),
    *_linear("attn_pool.mlp.fc1", "pool.mlp.up"),
    *_linear("attn_pool.mlp.fc2", "pool.mlp.down"),
    *_linear("head", "head"),
    *_linear("head_dist", "head_distill"),
]

#: The tensor by which a format is known, and its table.
FORMATS = {
    "embeddings.patch_embedding.weight": CLIP_NAMES,
    "embeddings.patch_embeddings.projection.weight": VIT_NAMES,
    "patch_embed.proj.weight": TIMM_NAMES,
}
