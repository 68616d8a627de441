"""A codebook kept as moving averages of the latents that were assigned to each code; it gets no gradient.

Appendix of VQ-VAE, arXiv:1711.00937, in the form of the widely used third-party code; codes that are no longer
used are moved to latents of the batch ("dead-code revival", Jukebox, arXiv:2005.00341).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jtok import kernels
from jtok.tokenizers.quantizers.bottleneck import Quantized, rotate, straight_through
from jtok.tokenizers.quantizers.vq import lookup, unit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Codebook:
    """codes [K,D], and their moving averages: latents per code [K], their sums [K,D]; all float32."""

    codes: Float[Array, "k d"]
    count: Float[Array, "k"]  # noqa: F821
    total: Float[Array, "k d"]


@dataclasses.dataclass(frozen=True)
class EmaVQ:
    """Quantizes with a `Codebook`, and moves it. decay, eps: of the averages. dead: codes with a count below this are
    revived; 0 revives none."""

    decay: float = 0.99
    cosine: bool = False
    beta: float = 0.25
    eps: float = 1e-5
    dead: float = 0.0
    pass_through: Literal["identity", "rotation"] = "identity"

    def __call__(self, z: Float[Array, "*b d"], book: Codebook, *, train: bool = False) -> Quantized:
        """Looks z up in the codebook as it is; the loss is the commitment alone."""
        z = z.astype(jnp.float32)
        z = unit(z) if self.cosine else z
        index = lookup(z, book.codes, self.cosine)
        q = lax.stop_gradient(book.codes)[index]
        values = (rotate if self.pass_through == "rotation" else straight_through)(z, q)
        commitment = jnp.square(q - z).mean()
        losses = {"commitment": commitment, "total": self.beta * commitment} if train else {}
        return Quantized(values, index, losses)

    def update(
        self, book: Codebook, z: Float[Array, "*b d"], indices: Int[Array, "*b"], key: Array | None = None
    ) -> Codebook:
        """The codebook after a training step that assigned z to `indices`; `key` picks latents for dead codes."""
        flat = lax.stop_gradient(z.reshape(-1, z.shape[-1]).astype(jnp.float32))
        flat = unit(flat) if self.cosine else flat
        size = book.count.shape[0]
        total, count = kernels.merge(flat[None], indices.reshape(1, -1).astype(jnp.int32), size)
        count = self.decay * book.count + (1 - self.decay) * count[0]
        total = self.decay * book.total + (1 - self.decay) * total[0]
        smooth = (count + self.eps) / (count.sum() + size * self.eps) * count.sum()
        codes = total / smooth[:, None]
        codes = unit(codes) if self.cosine else codes
        book = Codebook(codes, count, total)
        return self._revive(book, flat, key) if self.dead and key is not None else book

    def _revive(self, book: Codebook, flat: Float[Array, "n d"], key: Array) -> Codebook:
        dead = book.count < self.dead
        fresh = flat[jax.random.randint(key, dead.shape, 0, flat.shape[0])]
        return Codebook(
            jnp.where(dead[:, None], fresh, book.codes),
            jnp.where(dead, self.dead, book.count),
            jnp.where(dead[:, None], fresh * self.dead, book.total),
        )
