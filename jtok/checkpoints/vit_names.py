"""Names of the tensors of vision towers in released checkpoints, in every spelling, and where each goes in ours.

A name is normalised first (`split_name`: leading module names dropped, the layer number set apart), then looked up in
the table of its format. Files and modules of transformers differ in their spellings, and so do releases.
"""

from __future__ import annotations

import re
from typing import Any

from jtok.checkpoints.match import Format
from jtok.checkpoints.rules import Rule, flat, fused, linear, norm, table

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


def split_name(name: str) -> tuple[int | None, str]:
    """(layer or None, rest of the name) without leading module names."""
    name = _LEADING.sub("", name)
    layer = _LAYER.match(name)
    return (int(layer[1]), layer[2]) if layer else (None, name)


def _third(names: str, index: int) -> list[Rule]:
    """Query, key or value projection."""
    return fused(names, "blocks.attention.qkv", lambda c: (slice(None), index), lambda c: index)


def _half(names: str, second: bool) -> list[Rule]:
    """Gate or value half of the gated MLP."""

    def half(c: Any) -> slice:
        return slice(c.mlp, None) if second else slice(0, c.mlp)

    return fused(names, "blocks.mlp.up", lambda c: (slice(None), half(c)), half)


def _tokens(class_token: str, distill_token: str, registers: str) -> list[Rule]:
    return [
        table(class_token, "special", lambda c: slice(0, int(c.class_token)), ones=1),
        table(distill_token, "special", lambda c: slice(1, 1 + int(c.distill_token)), ones=1),
        table(registers, "special", lambda c: slice(c.special - c.registers, None), ones=1),
    ]


def _pool_projections() -> list[Rule]:
    rules = []
    for name, thirds in (("q", (0, 1)), ("kv", (1, 3))):
        rules.append(Rule(("head.attention.in_proj_weight",), f"pool.{name}.kernel", "linear", thirds=thirds))
        rules.append(flat("head.attention.in_proj_bias", f"pool.{name}.bias", thirds=thirds))
    return rules


#: transformers: CLIP, SigLIP and SigLIP 2 vision towers.
CLIP_NAMES = [
    flat("embeddings.class_embedding", "special"),
    *linear("embeddings.patch_embedding", "patch", how="patch"),
    table("embeddings.position_embedding.weight", "position"),
    *norm("pre_layrnorm pre_layernorm", "pre_norm"),
    *norm("layer_norm1", "blocks.norm1"),
    *_third("self_attn.q_proj", 0),
    *_third("self_attn.k_proj", 1),
    *_third("self_attn.v_proj", 2),
    *linear("self_attn.out_proj", "blocks.attention.out"),
    *norm("layer_norm2", "blocks.norm2"),
    *linear("mlp.fc1", "blocks.mlp.up"),
    *linear("mlp.fc2", "blocks.mlp.down"),
    *norm("post_layernorm", "norm"),
    table("head.probe", "pool.probe", ones=1),
    *_pool_projections(),
    *linear("head.attention.out_proj", "pool.out"),
    *norm("head.layernorm", "pool.norm"),
    *linear("head.mlp.fc1", "pool.mlp.up"),
    *linear("head.mlp.fc2", "pool.mlp.down"),
]

#: transformers: ViT, DeiT, DINOv2 with and without registers.
VIT_NAMES = [
    *_tokens("embeddings.cls_token", "embeddings.distillation_token", "embeddings.register_tokens"),
    *linear("embeddings.patch_embeddings.projection", "patch", how="patch"),
    table("embeddings.position_embeddings", "position", ones=1),
    *norm("layernorm_before norm1", "blocks.norm1"),
    *_third("attention.attention.query attention.q_proj", 0),
    *_third("attention.attention.key attention.k_proj", 1),
    *_third("attention.attention.value attention.v_proj", 2),
    *linear("attention.output.dense attention.o_proj", "blocks.attention.out"),
    flat("layer_scale1.lambda1", "blocks.scale1"),
    *norm("layernorm_after norm2", "blocks.norm2"),
    *linear("intermediate.dense mlp.fc1 mlp.weights_in", "blocks.mlp.up"),
    *_half("mlp.gate_proj", second=False),
    *_half("mlp.up_proj", second=True),
    *linear("output.dense mlp.fc2 mlp.weights_out mlp.down_proj", "blocks.mlp.down"),
    flat("layer_scale2.lambda1", "blocks.scale2"),
    *norm("layernorm", "norm"),
    *linear("classifier cls_classifier", "head"),
    *linear("distillation_classifier", "head_distill"),
]

#: timm: its vision transformers of all families.
TIMM_NAMES = [
    *_tokens("cls_token", "dist_token", "reg_token"),
    *linear("patch_embed.proj", "patch", how="patch"),
    table("pos_embed", "position", ones=1),
    *norm("norm_pre", "pre_norm"),
    *norm("norm1", "blocks.norm1"),
    *linear("attn.qkv", "blocks.attention.qkv"),
    *linear("attn.proj", "blocks.attention.out"),
    flat("ls1.gamma", "blocks.scale1"),
    *norm("norm2", "blocks.norm2"),
    *linear("mlp.fc1", "blocks.mlp.up"),
    *linear("mlp.fc2", "blocks.mlp.down"),
    flat("ls2.gamma", "blocks.scale2"),
    *norm("norm fc_norm", "norm"),
    table("attn_pool.latent", "pool.probe", ones=1),
    *linear("attn_pool.q", "pool.q"),
    *linear("attn_pool.kv", "pool.kv"),
    *linear("attn_pool.proj", "pool.out"),
    *norm("attn_pool.norm", "pool.norm"),
    *linear("attn_pool.mlp.fc1", "pool.mlp.up"),
    *linear("attn_pool.mlp.fc2", "pool.mlp.down"),
    *linear("head", "head"),
    *linear("head_dist", "head_distill"),
]

#: How names are read, with any of the tables.
TOWER = Format(lambda name: ("", *split_name(name)), lambda name: IGNORED.search(name) is not None)

#: The tensor by which a format is known, and its table.
FORMATS = {
    "embeddings.patch_embedding.weight": CLIP_NAMES,
    "embeddings.patch_embeddings.projection.weight": VIT_NAMES,
    "patch_embed.proj.weight": TIMM_NAMES,
}
