"""Names of the tensors of the tower of Qwen2.5-VL, as `vlm_names` has them for decoders: without what leads."""

from __future__ import annotations

from jtok.checkpoints.rules import Rule, fused, linear, norm


def _half(name: str, index: int) -> list[Rule]:
    """Gate or value half of the MLP."""
    return fused(f"mlp.{name}", "blocks.up", lambda c: (slice(None), index), lambda c: index)


#: The merger's norm is the tower's last one; the merger's MLP is the projector.
TOWER_NAMES = [
    Rule(("patch_embed.proj.weight",), "patch.kernel", "volume"),
    *norm("norm1", "blocks.norm1", bias=False),
    *linear("attn.qkv", "blocks.qkv"),
    *linear("attn.proj", "blocks.out"),
    *norm("norm2", "blocks.norm2", bias=False),
    *_half("gate_proj", 0),
    *_half("up_proj", 1),
    *linear("mlp.down_proj", "blocks.down"),
    *norm("merger.ln_q", "norm", bias=False),
]
