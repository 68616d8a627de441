"""Decoders: Llama, Vicuna, Mistral, Qwen2, Qwen2.5 and Gemma are settings of this one module.

Used functionally, like the towers: `graphdef, params = nnx.split(decoder)` once, then `nnx.merge` inside `jit`. A layer
comes in parts (project, attend, finish), so that the caller decides what is cached and which signals are taken.
Positions are numbers that travel with the tokens; they may have gaps after a reduction. Causality is by slot: a token
sees the valid slots up to its own. Sources: Llama arXiv:2302.13971, Mistral arXiv:2310.06825, Qwen2 arXiv:2407.10671,
Gemma arXiv:2403.08295, rotary positions arXiv:2104.09864, multimodal ones arXiv:2409.12191.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
from jtok.errors import UserError
from jtok.layers.activations import Activation
from jtok.layers.mlp import gated_maps, gated_mlp
from jtok.layers.rotary import Rotary, rotate, rotation
from jtok.layers.stacked import Stacked, stack_layers

Dtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and variant of a decoder."""

    vocabulary: int = 32000
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int = 128
    mlp: int = 11008
    act: Activation = "silu"
    eps: float = 1e-6
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False  # the output projection is the embedding table
    scaled_embedding: bool = False  # times sqrt(width) at look-up (Gemma)
    offset_norm: bool = False  # norms multiply by 1 + scale (Gemma)
    rotary: Rotary = Rotary()
    window: int = 0  # sliding attention window; 0 = none. Sequences longer than it are refused
    context: int = 0  # positions that the model was made for; 0 = not known
    bidirectional: bool = False  # the tokens of a prompt see each other (PaliGemma)
    extra_ids: int = 0  # ids that are read and never written: rows of the embedding after the vocabulary
    cross: tuple[int, ...] = ()  # cross-attention layers, each by the number of layers before it (`cross.CrossDecoder`)
    remat: bool = False
    dtype: Dtype = "float32"
    storage: Dtype = "float32"  # of parameters

    @property
    def compute(self) -> Any:
        """dtype of activations and of the cache."""
        return jnp.dtype(self.dtype)

    @property
    def axes(self) -> int:
        """Numbers in a position: 1, or 3 (time, row, column) for multimodal RoPE."""
        return 3 if self.rotary.sections else 1


class RMSNorm(nnx.Module):
    """x / rms(x) in float32, times a scale per channel (1 + scale where `offset`)."""

    def __init__(self, c: DecoderConfig):
        start = jnp.zeros if c.offset_norm else jnp.ones
        self.scale = nnx.Param(start(c.width, jnp.dtype(c.storage)))
        self.eps, self.offset, self.dtype = c.eps, c.offset_norm, c.compute

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
        if self.offset:  # Gemma rounds once, the others before the scale
            return (y * (1.0 + self.scale[...].astype(jnp.float32))).astype(self.dtype)
        return y.astype(self.dtype) * self.scale[...].astype(self.dtype)


class Layer(nnx.Module):
    """x + attention(norm(x)), then x + gated MLP(norm(x))."""

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs):
        kinds = {"dtype": c.compute, "param_dtype": jnp.dtype(c.storage), "rngs": rngs}
        self.config = c
        self.norm1 = RMSNorm(c)
        self.qkv = nnx.LinearGeneral(c.width, (c.heads + 2 * c.kv_heads, c.head_dim), use_bias=c.qkv_bias, **kinds)
        self.out = nnx.LinearGeneral((c.heads, c.head_dim), c.width, axis=(-2, -1), use_bias=c.out_bias, **kinds)
        self.norm2 = RMSNorm(c)
        self.up, self.down = gated_maps(c.width, c.mlp, use_bias=c.mlp_bias, **kinds)

    def project(self, x: Float[Array, "B N D"], rope: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        """Queries [B,N,H,Dh], keys and values [B,N,Hk,Dh]; queries and keys rotated to their positions."""
        h, hk = self.config.heads, self.config.kv_heads
        q, k, v = jnp.split(self.qkv(self.norm1(x)), (h, h + hk), 2)
        return rotate(q, rope), rotate(k, rope), v

    def attended(self, x: Float[Array, "B N D"], y: Float[Array, "B N H Dh"]) -> Float[Array, "B N D"]:
        """The residual after attention, given its output `y` for the rows of `x`."""
        return x + self.out(y)

    def finish(self, x: Float[Array, "B N D"], y: Float[Array, "B N H Dh"]) -> Float[Array, "B N D"]:
        """The rest of the layer, given the attention's output `y` for the rows of `x`."""
        return self.feed_forward(self.attended(x, y))

    def feed_forward(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """The MLP sub-layer."""
        return x + gated_mlp(self.norm2(x), self.up, self.down, self.config.act)


class Decoder(nnx.Module):
    """Embedding, a stack of layers, final norm and output projection."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        c = self.config = config
        if c.heads % c.kv_heads:
            raise UserError(f"{c.heads} query heads cannot share {c.kv_heads} key heads: choose a divisor.")
        init, storage = nnx.initializers.normal(0.02), jnp.dtype(c.storage)
        self.embedding = nnx.Param(init(rngs.params(), (c.vocabulary + c.extra_ids, c.width), storage))
        self.blocks = stack_layers(lambda rngs: Layer(c, rngs), c.depth, rngs)
        self.norm = RMSNorm(c)
        self.head = None if c.tied else nnx.Param(init(rngs.params(), (c.width, c.vocabulary), storage))

    @property
    def layers(self) -> Stacked:
        """The stacked layers."""
        return Stacked(self.blocks, remat=self.config.remat, scope="llm.layers")

    def embed(self, ids: Int[Array, "B N"]) -> Float[Array, "B N D"]:
        """Embeddings of text ids."""
        x = self.embedding[...][ids].astype(self.config.compute)
        return x * jnp.asarray(self.config.width**0.5, x.dtype) if self.config.scaled_embedding else x

    def rope(self, position: Int[Array, "B N P"]) -> tuple[Float[Array, "B N Dh2"], Float[Array, "B N Dh2"]]:
        """(cosines, sines) of the rotation to each position."""
        return rotation(position, self.config.head_dim, self.config.rotary)

    def logits(self, x: Float[Array, "B N D"]) -> Float[Array, "B N V"]:
        """float32 logits of the next token, from outputs of the last layer."""
        x = self.norm(x)
        table = self.embedding[...].T if self.head is None else self.head[...]
        return jnp.einsum("bnd,dv->bnv", x, table.astype(x.dtype), preferred_element_type=jnp.float32)

    def __call__(
        self,
        ids: Int[Array, "B N"],
        valid: Bool[Array, "B N"] | None = None,
        position: Int[Array, " ..."] | None = None,
    ) -> Float[Array, "B N V"]:
        """Logits at every slot of a text, without a cache. Positions [B,N] (or [3,B,N]) count valid slots if None."""
        valid = jnp.ones(ids.shape, bool) if valid is None else valid
        axes = self.config.axes
        where = running_positions(valid, axes) if position is None else with_axes(position, axes)
        rope = self.rope(where)

        def body(layer: Layer, x: Array) -> tuple[Array, None]:
            q, k, v = layer.project(x, rope)
            y = kernels.attention_scores(q, k, v, valid=valid, causal=not self.config.bidirectional).out
            return layer.finish(x, y), None

        return self.logits(self.layers.scan(body, self.embed(ids), 0, self.config.depth)[0])


def running_positions(valid: Bool[Array, "B N"], axes: int, first: int | Array = 0) -> Int[Array, "B N P"]:
    """Consecutive positions of the valid slots, from `first`; the same on all axes."""
    position = jnp.maximum(jnp.cumsum(valid, 1, dtype=jnp.int32) - 1, 0) + first
    return jnp.broadcast_to(position[..., None], (*position.shape, axes))


def with_axes(position: Int[Array, " ..."], axes: int) -> Int[Array, "B N P"]:
    """Positions [B,N] or [P,B,N] as [B,N,P]; text has the same position on all axes."""
    if position.ndim == 2:
        return jnp.broadcast_to(position[..., None], (*position.shape, axes))
    if position.ndim != 3 or position.shape[0] != axes:
        raise UserError(f"positions have shape {list(position.shape)}: pass [B,N] or [{axes},B,N].")
    return jnp.moveaxis(position, 0, -1)
