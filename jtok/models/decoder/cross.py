"""Cross-attention layers between the layers of a decoder (Llama-3.2-Vision, arXiv:2407.21783), and their cache.

A layer adds the output of attention from text to visual tokens through tanh gates. Its keys and values depend on the
visual tokens alone, so they are computed once and never grow.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jtok import kernels
from jtok.layers.mlp import gated_maps, gated_mlp
from jtok.layers.stacked import Stacked, stack_layers
from jtok.models.decoder.decoder import Decoder, DecoderConfig, RMSNorm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CrossCache:
    """Keys and values of the N visual tokens that one cross-attention layer reads."""

    k: Float[Array, "B N Hk Dh"]  # normalised
    v: Float[Array, "B N Hk Dh"]
    valid: Bool[Array, "B N"]  # what text after the prompt may attend to
    open: Bool[Array, " B"]  # whether such text attends to any image
    bias: Float[Array, "B N"] | None = None  # log of the size of each token, where attention is proportional

    @property
    def bytes(self) -> int:
        """Size of keys and values in bytes."""
        return self.k.nbytes + self.v.nbytes


class CrossLayer(nnx.Module):
    """x + gate * attention(norm(x), visual tokens), then x + gate * gated MLP(norm(x)); gates are tanh."""

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs):
        storage = jnp.dtype(c.storage)
        kinds = {"use_bias": False, "dtype": c.compute, "param_dtype": storage, "rngs": rngs}
        head = dataclasses.replace(c, width=c.head_dim)
        self.config = c
        self.norm1, self.q_norm, self.k_norm, self.norm2 = RMSNorm(c), RMSNorm(head), RMSNorm(head), RMSNorm(c)
        self.q = nnx.LinearGeneral(c.width, (c.heads, c.head_dim), **kinds)
        self.kv = nnx.LinearGeneral(c.width, (2 * c.kv_heads, c.head_dim), **kinds)
        self.out = nnx.LinearGeneral((c.heads, c.head_dim), c.width, axis=(-2, -1), **kinds)
        self.up, self.down = gated_maps(c.width, c.mlp, **kinds)
        self.gate1, self.gate2 = nnx.Param(jnp.zeros((), storage)), nnx.Param(jnp.zeros((), storage))

    def queries(self, x: Float[Array, "B M D"]) -> Float[Array, "B M H Dh"]:
        """Queries of the text, without RoPE, since visual tokens have no positions here."""
        return self.q_norm(self.q(self.norm1(x)))

    def states(self, visual: Float[Array, "B N D"]) -> tuple[Float[Array, "B N Hk Dh"], Float[Array, "B N Hk Dh"]]:
        """Keys and values of the visual tokens."""
        k, v = jnp.split(self.kv(visual), 2, 2)
        return self.k_norm(k), v

    def finish(
        self, x: Float[Array, "B M D"], y: Float[Array, "B M H Dh"], open: Bool[Array, "B M"]
    ) -> Float[Array, "B M D"]:
        """The rest of the layer, given the attention's output `y`; text that attends to no image skips the MLP."""
        x = x + self.out(y) * jnp.tanh(self.gate1[...]).astype(x.dtype)
        z = gated_mlp(self.norm2(x), self.up, self.down, self.config.act)
        return x + jnp.where(open[..., None], z, 0) * jnp.tanh(self.gate2[...]).astype(x.dtype)

    def read(self, x: Float[Array, "B T D"], cache: CrossCache) -> Float[Array, "B T D"]:
        """Applies the layer to text after the prompt."""
        y = kernels.attention_scores(self.queries(x), cache.k, cache.v, valid=cache.valid, bias=cache.bias).out
        return self.finish(x, y, jnp.broadcast_to(cache.open[:, None], x.shape[:2]))


class CrossStack(nnx.Module):
    """All cross-attention layers of a decoder."""

    def __init__(self, c: DecoderConfig, rngs: nnx.Rngs):
        self.blocks = stack_layers(lambda rngs: CrossLayer(c, rngs), len(c.cross), rngs)

    def layer(self, i: int) -> CrossLayer:
        """Layer i on its own."""
        return Stacked(self.blocks).layer(i)


class CrossDecoder(Decoder):
    """A decoder with cross-attention layers at `config.cross`; without an image they are skipped."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.cross = CrossStack(config, rngs)
