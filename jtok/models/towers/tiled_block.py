"""A block of the tower of Llama-3.2-Vision: the tiles of an image attend to each other, reducers see one tile each."""

from __future__ import annotations

from collections.abc import Collection

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jtok.layers.block import block_mlp
from jtok.layers.tagged import tagged_attention
from jtok.models.towers.tiled_config import TiledConfig
from jtok.tokens import Tokens

#: Entry of `Tokens.carry`: 1.0 for tokens of missing tiles and for the slots that pad a tile.
PADDING = "padding"


class TiledAttention(nnx.Module):
    """Self-attention over all tiles of an image.

    As the model was trained, padding is hidden from padding alone: what is real attends to it too.
    """

    def __init__(self, c: TiledConfig, rngs: nnx.Rngs):
        self.tiles, shape = c.tiles, (3, c.heads, c.width // c.heads)
        kinds = {"use_bias": False, "dtype": c.compute, "rngs": rngs}
        self.qkv = nnx.LinearGeneral(c.width, shape, **kinds)
        self.out = nnx.LinearGeneral(shape[1:], c.width, axis=(-2, -1), **kinds)

    def __call__(self, x: Float[Array, "C N D"], tokens: Tokens, wants: Collection[str] = ()):
        """(output [C,N,D], the signals named in `wants`), C being tiles."""
        qkv = self.qkv(x)
        q, k, v = (self._joined(qkv[:, :, i]) for i in range(3))
        padding = self._joined(tokens.carry[PADDING] > 0.5)
        bias = jnp.log(jnp.maximum(tokens.size, 1e-6)) if tokens.proportional else None
        masks = {
            "bias": None if bias is None else self._joined(bias),
            "valid": None if tokens.valid is None else self._joined(tokens.valid),
        }
        rows = jnp.arange(self.tiles) * x.shape[1] if "class_attention" in wants else None
        tags = padding[..., None], padding[..., None]
        result = tagged_attention(q, k, v, *tags, **masks, rows=rows, return_probabilities=rows is not None)
        signals = {"queries": qkv[:, :, 0], "keys": qkv[:, :, 1], "values": qkv[:, :, 2]}
        if rows is not None:
            signals["class_attention"] = self._own(result.probabilities)
        if "attention_received" in wants:
            signals["attention_received"] = self._received(q, k, v, padding, masks, x.shape[:2])
        y = result.out.reshape(*x.shape[:2], *result.out.shape[2:])
        return self.out(y), {name: signals[name] for name in wants if name in signals}

    def _joined(self, a: Array) -> Array:
        """[C,N,...] to [images, tiles * N, ...]."""
        return a.reshape(-1, self.tiles * a.shape[1], *a.shape[2:])

    def _own(self, probabilities: Float[Array, "I H T M"]) -> Float[Array, "C H N"]:
        """Attention of each tile's class token to the tokens of its own tile."""
        i, h, t, m = probabilities.shape
        within = jnp.diagonal(probabilities.reshape(i, h, t, t, m // t), axis1=2, axis2=3)  # [I,H,N,T]
        return jnp.moveaxis(within, 3, 1).reshape(i * t, h, m // t)

    def _received(self, q: Array, k: Array, v: Array, padding: Bool[Array, "I M"], masks: dict, shape: tuple) -> Array:
        """Attention received from all real tokens of the image."""
        tags, real = padding[..., None], (~padding).astype(jnp.float32)
        if masks["valid"] is not None:
            real = real * masks["valid"]
        return tagged_attention(q, k, v, tags, tags, **masks, rows="all", row_weights=real).received.reshape(shape)


class TiledBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the branches of the global blocks are scaled by tanh of a gate."""

    def __init__(self, c: TiledConfig, rngs: nnx.Rngs, gated: bool):
        norm = {"epsilon": c.eps, "dtype": c.compute, "rngs": rngs}
        self.norm1 = nnx.LayerNorm(c.width, **norm)
        self.attention = TiledAttention(c, rngs)
        self.norm2 = nnx.LayerNorm(c.width, **norm)
        self.mlp = block_mlp(c, rngs)
        self.gate1 = nnx.Param(jnp.zeros(())) if gated else None
        self.gate2 = nnx.Param(jnp.zeros(())) if gated else None

    def attend(self, tokens: Tokens, wants: Collection[str] = ()) -> tuple[Tokens, dict[str, Array]]:
        """The attention sub-layer; also the signals named in `wants`."""
        y, signals = self.attention(self.norm1(tokens.x), tokens, wants)
        return tokens.replace(x=tokens.x + _gated(y, self.gate1)), signals

    def feed_forward(self, tokens: Tokens) -> Tokens:
        """The MLP sub-layer."""
        return tokens.replace(x=tokens.x + _gated(self.mlp(self.norm2(tokens.x)), self.gate2))


def _gated(y: Array, gate: nnx.Param | None) -> Array:
    return y if gate is None else y * jnp.tanh(gate[...]).astype(y.dtype)
