"""Names of the tensors of the tower of Qwen2.5-VL, as `vlm_names` has them for decoders: without what leads."""

from __future__ import annotations

from jtok.checkpoints.names import Rule


def _linear(name: str, path: str, how: str = "linear") -> list[Rule]:
    return [Rule((f"{name}.weight",), f"{path}.kernel", how), Rule((f"{name}.bias",), f"{path}.bias", "flat")]


def _half(name: str, index: int) -> list[Rule]:
    """Gate or value half of the MLP."""
    return [
        Rule((f"{name}.weight",), "blocks.up.kernel", "linear", lambda c: (slice(None), index)),
        Rule((f"{name}.bias",), "blocks.up.bias", "flat", lambda c: index),
    ]


#: The merger's norm is the tower's last one; the merger's MLP is the projector.
TOWER_NAMES = [
    Rule(("patch_embed.proj.weight",), "patch.kernel", "conv"),
    Rule(("norm1.weight",), "blocks.norm1.scale", "flat"),
    *_linear("attn.qkv", "blocks.qkv"),
    *_linear("attn.proj", "blocks.out", "heads"),
    Rule(("norm2.weight",), "blocks.norm2.scale", "flat"),
    *_half("mlp.gate_proj", 0),
    *_half("mlp.up_proj", 1),
    *_linear("mlp.down_proj", "blocks.down"),
    Rule(("merger.ln_q.weight",), "norm.scale", "flat"),
]
