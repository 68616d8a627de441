"""A pre-norm transformer block of a vision tower, in two halves, so that a reducer can be placed between them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jtok import kernels
from jtok.layers.mlp import MLP, GatedMLP
from jtok.ops import score
from jtok.tokens import Tokens


@runtime_checkable
class BlockShape(Protocol):
    """What a block must know of its tower's config."""

    width: int
    heads: int
    mlp: int
    act: str
    mlp_kind: str
    eps: float
    qkv_bias: bool
    layer_scale: bool

    @property
    def compute(self) -> Any:
        """dtype of activations."""


class Attention(nnx.Module):
    """Multi-head self-attention with fused query, key and value projections."""

    def __init__(self, c: BlockShape, rngs: nnx.Rngs):
        shape = (3, c.heads, c.width // c.heads)
        self.qkv = nnx.LinearGeneral(c.width, shape, use_bias=c.qkv_bias, dtype=c.compute, rngs=rngs)
        self.out = nnx.LinearGeneral(shape[1:], c.width, axis=(-2, -1), dtype=c.compute, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], tokens: Tokens, wants: Collection[str] = ()):
        """(output [B,N,D], the signals named in `wants`). `tokens` gives sizes, validity and the soft keep policy."""
        qkv = self.qkv(x)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        bias = jnp.log(jnp.maximum(tokens.size, 1e-6)) if tokens.proportional else None
        signals = {"queries": q, "keys": k, "values": v}
        if tokens.policy is not None:
            y, probabilities = score.policy_attention(q, k, v, tokens.policy, bias=bias, valid=tokens.valid)
            signals["class_attention"] = probabilities[:, :, 0]
            signals["attention_received"] = probabilities.mean(1).sum(1)
        else:
            masks = {"bias": bias, "valid": tokens.valid}
            rows = "all" if "attention_received" in wants else (0,) if "class_attention" in wants else None
            weights = tokens.valid.astype(jnp.float32) if rows == "all" and tokens.valid is not None else None
            result = kernels.attention_scores(
                q, k, v, **masks, rows=rows, row_weights=weights, return_probabilities=rows == (0,)
            )
            y = result.out
            if rows == "all":
                signals["attention_received"] = result.received
            if "class_attention" in wants:
                few = score.attention_rows(q[:, :1], k, **masks) if rows == "all" else result.probabilities
                signals["class_attention"] = few[:, :, 0]
        return self.out(y), {name: signals[name] for name in wants}


def block_mlp(c: BlockShape, rngs: nnx.Rngs) -> MLP | GatedMLP:
    """The MLP of a block, or its gated form (`swiglu`: DINOv2 giant)."""
    kinds = {"dtype": c.compute, "rngs": rngs}
    if c.mlp_kind == "swiglu":
        return GatedMLP(c.width, c.mlp, c.width, **kinds)
    return MLP(c.width, c.mlp, c.width, c.act, **kinds)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); residual branches may be scaled per channel (layer scale)."""

    def __init__(self, c: BlockShape, rngs: nnx.Rngs):
        norm = {"epsilon": c.eps, "dtype": c.compute, "rngs": rngs}
        self.norm1 = nnx.LayerNorm(c.width, **norm)
        self.attention = Attention(c, rngs)
        self.norm2 = nnx.LayerNorm(c.width, **norm)
        self.mlp = block_mlp(c, rngs)
        self.scaled = c.layer_scale
        if c.layer_scale:
            self.scale1 = nnx.Param(jnp.ones(c.width))
            self.scale2 = nnx.Param(jnp.ones(c.width))

    def attend(self, tokens: Tokens, wants: Collection[str] = ()) -> tuple[Tokens, dict[str, Array]]:
        """The attention half; also the signals named in `wants`."""
        y, signals = self.attention(self.norm1(tokens.x), tokens, wants)
        y = y * self.scale1[...].astype(y.dtype) if self.scaled else y
        return tokens.replace(x=tokens.x + y), signals

    def feed_forward(self, tokens: Tokens) -> Tokens:
        """The MLP half."""
        y = self.mlp(self.norm2(tokens.x))
        y = y * self.scale2[...].astype(y.dtype) if self.scaled else y
        return tokens.replace(x=tokens.x + y)
