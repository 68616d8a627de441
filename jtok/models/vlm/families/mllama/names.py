"""Names of the tensors of Llama-3.2-Vision, as `vlm_names` has them for other models: without what leads."""

from __future__ import annotations

from jtok.checkpoints.rules import Rule, Where, flat, fused, linear, norm, table


def _part(name: str, path: str, at: Where) -> Rule:
    """A layer without bias that is one part of a fused one of ours."""
    kernel, _ = fused(name, path, at, at)
    return kernel


def _tiles(name: str, path: str, gate: str) -> list[Rule]:
    return [table(f"{name}.embedding.weight", path), flat(f"{name}.gate", gate)]


#: A block of the tower, local or global.
BLOCK_NAMES = [
    *norm("input_layernorm", "blocks.norm1"),
    _part("self_attn.q_proj", "blocks.attention.qkv", lambda c: (slice(None), 0)),
    _part("self_attn.k_proj", "blocks.attention.qkv", lambda c: (slice(None), 1)),
    _part("self_attn.v_proj", "blocks.attention.qkv", lambda c: (slice(None), 2)),
    *linear("self_attn.o_proj", "blocks.attention.out", bias=False),
    *norm("post_attention_layernorm", "blocks.norm2"),
    *linear("mlp.fc1", "blocks.mlp.up"),
    *linear("mlp.fc2", "blocks.mlp.down"),
    flat("gate_attn", "blocks.gate1"),
    flat("gate_ffn", "blocks.gate2"),
]

TOWER_NAMES = [
    *linear("patch_embedding", "patch", how="patch", bias=False),
    flat("class_embedding", "special"),
    table("gated_positional_embedding.embedding", "position"),
    flat("gated_positional_embedding.gate", "position_gate"),
    table("gated_positional_embedding.tile_embedding.weight", "tile_position"),
    *_tiles("pre_tile_positional_embedding", "pre_tile", "pre_gate"),
    *_tiles("post_tile_positional_embedding", "post_tile", "post_gate"),
    *norm("layernorm_pre", "pre_norm"),
    *norm("layernorm_post", "post_norm"),
    *BLOCK_NAMES,
]

PROJECTOR_NAMES = linear(".", "layers.0")

#: A cross-attention layer of the decoder.
CROSS_NAMES = [
    *norm("input_layernorm", "blocks.norm1", bias=False),
    *linear("cross_attn.q_proj", "blocks.q", bias=False),
    _part("cross_attn.k_proj", "blocks.kv", lambda c: (slice(None), slice(0, c.kv_heads))),
    _part("cross_attn.v_proj", "blocks.kv", lambda c: (slice(None), slice(c.kv_heads, None))),
    *linear("cross_attn.o_proj", "blocks.out", bias=False),
    *norm("cross_attn.q_norm", "blocks.q_norm", bias=False),
    *norm("cross_attn.k_norm", "blocks.k_norm", bias=False),
    flat("cross_attn_attn_gate", "blocks.gate1"),
    *norm("post_attention_layernorm", "blocks.norm2", bias=False),
    _part("mlp.gate_proj", "blocks.up", lambda c: (slice(None), 0)),
    _part("mlp.up_proj", "blocks.up", lambda c: (slice(None), 1)),
    *linear("mlp.down_proj", "blocks.down"),
    flat("cross_attn_mlp_gate", "blocks.gate2"),
]
