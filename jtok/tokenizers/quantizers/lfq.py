"""Lookup-free quantization: every channel is one bit.

"Language Model Beats Diffusion: Tokenizer is Key to Visual Generation" (MAGVIT-v2), arXiv:2310.05737, ICLR 2024. The
entropy terms are computed as in the widely used third-party code; the authors' is not public.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError
from jtok.tokenizers.quantizers.bottleneck import Quantized, bits_to_index, entropy, index_to_bits, straight_through


@dataclasses.dataclass(frozen=True)
class LFQ:
    """Quantizes `codebooks * bits` channels to +-scale; zero goes to -scale. One index a codebook.

    clamp: soft clamp of the input to (-clamp, clamp), if given. inverse_temperature multiplies the logits of the
    entropies. factorised: compute the batch entropy bit by bit (an upper bound; the per-sample entropy is exact either
    way), which is needed from about 14 bits on, where 2^bits probabilities a latent are too many.
    """

    bits: int
    codebooks: int = 1
    scale: float = 1.0
    clamp: float | None = None
    entropy_weight: float = 0.1
    commitment_weight: float = 0.25
    diversity: float = 1.0
    inverse_temperature: float = 100.0
    factorised: bool = False

    def __post_init__(self):
        if not 1 <= self.bits <= 31:
            raise UserError(f"LFQ has {self.bits} bits; an int32 index holds 1 to 31.")

    @property
    def size(self) -> int:
        """Number of codes of a codebook."""
        return 2**self.bits

    def __call__(
        self, z: Float[Array, "*b cd"], *, train: bool = False, valid: Bool[Array, "*b"] | None = None
    ) -> Quantized:
        """z [..., codebooks * bits] -> values of that shape, float32; indices [...] (or [..., codebooks]).

        valid: latents that enter the losses (default: all). Losses are returned in training only.
        """
        z = z.astype(jnp.float32)
        if self.clamp is not None:
            z = jnp.tanh(z / self.clamp) * self.clamp
        x = z.reshape(*z.shape[:-1], self.codebooks, self.bits)
        q = jnp.where(x > 0, self.scale, -self.scale)
        index = bits_to_index(x > 0)
        index = index[..., 0] if self.codebooks == 1 else index
        values = (straight_through(x, q) if train else q).reshape(z.shape)
        return Quantized(values, index, self.losses(x, q, valid) if train else {})

    def losses(
        self, x: Float[Array, "*b c d"], q: Float[Array, "*b c d"], valid: Bool[Array, "*b"] | None
    ) -> dict[str, Array]:
        """per_sample_entropy, batch_entropy, commitment (unweighted), and total."""
        weight = jnp.ones(x.shape[:-2]) if valid is None else valid.astype(jnp.float32)
        weight = weight / jnp.maximum(weight.sum(), 1)

        def mean(a):  # over latents
            return jnp.tensordot(weight, a, weight.ndim)

        ones = jax.nn.sigmoid(4 * self.inverse_temperature * self.scale * x)  # probability of +scale, bit by bit
        if self.factorised:
            bit = jnp.stack([1 - ones, ones], -1)
            per_sample = mean(entropy(bit, floor=1e-5).sum(-1)).mean()
            batch = entropy(mean(bit), floor=1e-5).sum(-1).mean()
        else:
            p = jax.nn.softmax(2 * self.inverse_temperature * x @ self.codebook().T, -1)
            per_sample, batch = mean(entropy(p, floor=1e-5)).mean(), entropy(mean(p), floor=1e-5).mean()
        commitment = mean(jnp.square(x - lax.stop_gradient(q)).mean((-1, -2)))
        total = self.entropy_weight * (per_sample - self.diversity * batch) + self.commitment_weight * commitment
        named = {"per_sample_entropy": per_sample, "batch_entropy": batch, "commitment": commitment}
        return named | {"total": total}

    def codebook(self) -> Float[Array, "k d"]:
        """All codes, in the order of their indices."""
        return self._codes(jnp.arange(self.size, dtype=jnp.int32))

    def _codes(self, index: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        return self.scale * (2.0 * index_to_bits(index, self.bits) - 1)

    def decode(self, indices: Int[Array, "..."]) -> Float[Array, "... cd"]:
        """The codes of indices [...] (or [..., codebooks]), codebook after codebook in the last axis."""
        codes = self._codes(indices if self.codebooks > 1 else indices[..., None])
        return codes.reshape(*codes.shape[:-2], -1)
