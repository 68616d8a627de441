"""Names of the tensors of Llama-3.2-Vision, as `vlm_names` has them for other models: without what leads."""

from __future__ import annotations

from typing import Any

from jtok.checkpoints.names import Rule, Where


def _norm(name: str, path: str) -> list[Rule]:
    return [Rule((f"{name}.weight",), f"{path}.scale", "flat"), Rule((f"{name}.bias",), f"{path}.bias", "flat")]


def _scale(name: str, path: str) -> Rule:
    return Rule((f"{name}.weight",), f"{path}.scale", "flat")


def _kernel(name: str, path: str, how: Any = "linear", at: Where = lambda c: ...) -> Rule:
    return Rule((f"{name}.weight",), f"{path}.kernel", how, at)


def _linear(name: str, path: str) -> list[Rule]:
    return [_kernel(name, path), Rule((f"{name}.bias",), f"{path}.bias", "flat")]


def _part(index: int) -> Where:
    """One of the fused projections side by side on the second axis."""
    return lambda c: (slice(None), index)


def _tiles(name: str, table: str, gate: str) -> list[Rule]:
    return [Rule((f"{name}.embedding.weight",), table, "table"), Rule((f"{name}.gate",), gate, "flat")]


#: A block of the tower, local or global.
BLOCK_NAMES = [
    *_norm("input_layernorm", "blocks.norm1"),
    _kernel("self_attn.q_proj", "blocks.attention.qkv", at=_part(0)),
    _kernel("self_attn.k_proj", "blocks.attention.qkv", at=_part(1)),
    _kernel("self_attn.v_proj", "blocks.attention.qkv", at=_part(2)),
    _kernel("self_attn.o_proj", "blocks.attention.out", "heads"),
    *_norm("post_attention_layernorm", "blocks.norm2"),
    *_linear("mlp.fc1", "blocks.mlp.up"),
    *_linear("mlp.fc2", "blocks.mlp.down"),
    Rule(("gate_attn",), "blocks.gate1", "flat"),
    Rule(("gate_ffn",), "blocks.gate2", "flat"),
]

TOWER_NAMES = [
    _kernel("patch_embedding", "patch", "patch"),
    Rule(("class_embedding",), "special", "flat"),
    Rule(("gated_positional_embedding.embedding",), "position", "table"),
    Rule(("gated_positional_embedding.gate",), "position_gate", "flat"),
    Rule(("gated_positional_embedding.tile_embedding.weight",), "tile_position", "table"),
    *_tiles("pre_tile_positional_embedding", "pre_tile", "pre_gate"),
    *_tiles("post_tile_positional_embedding", "post_tile", "post_gate"),
    *_norm("layernorm_pre", "pre_norm"),
    *_norm("layernorm_post", "post_norm"),
    *BLOCK_NAMES,
]

PROJECTOR_NAMES = [Rule(("weight",), "layers.0.kernel", "linear"), Rule(("bias",), "layers.0.bias", "flat")]

#: A cross-attention layer of the decoder.
CROSS_NAMES = [
    _scale("input_layernorm", "blocks.norm1"),
    _kernel("cross_attn.q_proj", "blocks.q"),
    _kernel("cross_attn.k_proj", "blocks.kv", at=lambda c: (slice(None), slice(0, c.kv_heads))),
    _kernel("cross_attn.v_proj", "blocks.kv", at=lambda c: (slice(None), slice(c.kv_heads, None))),
    _kernel("cross_attn.o_proj", "blocks.out", "heads"),
    _scale("cross_attn.q_norm", "blocks.q_norm"),
    _scale("cross_attn.k_norm", "blocks.k_norm"),
    Rule(("cross_attn_attn_gate",), "blocks.gate1", "flat"),
    _scale("post_attention_layernorm", "blocks.norm2"),
    _kernel("mlp.gate_proj", "blocks.up", at=_part(0)),
    _kernel("mlp.up_proj", "blocks.up", at=_part(1)),
    *_linear("mlp.down_proj", "blocks.down"),
    Rule(("cross_attn_mlp_gate",), "blocks.gate2", "flat"),
]
