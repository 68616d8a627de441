"""Binary spherical quantization: bits of a unit vector, with an entropy that needs no sum over all codes.

"Image and Video Tokenization with Binary Spherical Quantization", arXiv:2406.07548.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.tokenizers.quantizers.bottleneck import Quantized, bits_to_index, entropy, index_to_bits, straight_through

_EPS = 1e-8


@dataclasses.dataclass(frozen=True)
class BSQ:
    """Quantizes unit vectors of `bits` channels to (+-1) / sqrt(bits). It does not normalise them: the caller does.

    group: channels of a group; the indices are one a group, [..., bits / group], unless all bits fit one int32 and
    `group` is `bits`. entropy: `group` sums over the 2^group codes of each group, `analytical` over each bit.
    spherical: scale codes to unit length (else they are +-1).
    """

    bits: int
    group: int = 1
    entropy: Literal["group", "analytical"] = "analytical"
    spherical: bool = True
    beta: float = 0.0
    per_sample_weight: float = 1.0
    codebook_weight: float = 1.0
    weight: float = 1.0
    inverse_temperature: float = 1.0

    def __post_init__(self):
        if self.group < 1 or self.bits % self.group or self.group > 31:
            raise UserError(f"BSQ groups of {self.group} bits do not divide {self.bits} bits, or exceed 31.")

    @property
    def size(self) -> int:
        """Number of codes of a group."""
        return 2**self.group

    @property
    def scale(self) -> float:
        """Absolute value of every channel of a code."""
        return self.bits**-0.5 if self.spherical else 1.0

    def __call__(self, z: Float[Array, "*b c"], *, train: bool = False) -> Quantized:
        """z [..., bits] of unit length -> values, float32; indices [..., groups] ([...] for one group)."""
        z = z.astype(jnp.float32)
        bits = z > 0
        values = straight_through(z, jnp.where(bits, 1.0, -1.0)) * self.scale
        index = bits_to_index(bits.reshape(*z.shape[:-1], -1, self.group))
        index = index[..., 0] if self.group == self.bits else index
        return Quantized(values, index, self.losses(z, values) if train else {})

    def probabilities(self, z: Float[Array, "*b c"]) -> Float[Array, "*b g k"]:
        """Soft assignment to the codes of each group (`analytical`: to the two values of each bit)."""
        if self.entropy == "analytical":
            zero = jax.nn.sigmoid(-4 * z * self.scale * self.inverse_temperature)
            return jnp.stack([zero, 1 - zero], -1)
        codes = self._codes(jnp.arange(self.size, dtype=jnp.int32))
        parts = z.reshape(*z.shape[:-1], -1, self.group)
        return jax.nn.softmax(2 * self.inverse_temperature * parts @ codes.T, -1)

    def losses(self, z: Float[Array, "*b c"], values: Float[Array, "*b c"]) -> dict[str, Array]:
        """per_sample_entropy, codebook_entropy (sums over groups), commitment (sum over channels), and total."""
        p = self.probabilities(z)
        mean = p.mean(tuple(range(p.ndim - 2)))
        per_sample, codebook = entropy(p, eps=_EPS).sum(-1).mean(), entropy(mean, eps=_EPS).sum()
        penalty = self.per_sample_weight * per_sample - self.codebook_weight * codebook
        commitment = jnp.square(lax.stop_gradient(values) - z).sum(-1).mean()
        total = self.beta * commitment + self.weight * penalty / self.inverse_temperature
        named = {"per_sample_entropy": per_sample, "codebook_entropy": codebook, "commitment": commitment}
        return named | {"total": total}

    def _codes(self, index: Int[Array, "*b"]) -> Float[Array, "*b g"]:
        return self.scale * (2.0 * index_to_bits(index, self.group) - 1)

    def decode(self, indices: Int[Array, "..."]) -> Float[Array, "... c"]:
        """The codes of group indices."""
        codes = self._codes(indices[..., None] if self.group == self.bits else indices)
        return codes.reshape(*codes.shape[:-2], -1)
