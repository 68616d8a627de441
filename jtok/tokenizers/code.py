"""The interface of all tokenizers: an image becomes a code of some length, and any prefix of it an image again."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Code:
    """A batch of coded images: K latents each, of which the first `count` are meant.

    ids: int32 [B,K] (None for continuous latents). losses: of the bottleneck, in training. extra: what a method wants
    to hand on (the halting probabilities of KARL, the roll-outs of ALIT).
    """

    latents: Float[Array, "B K d"]
    ids: Int[Array, "B K"] | None
    count: Int[Array, " B"]
    losses: dict[str, Array] = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)

    def take(self, count: int | Int[Array, " B"]) -> Code:
        """The code cut to its first `count` latents."""
        count = jnp.broadcast_to(jnp.asarray(count, jnp.int32), self.count.shape)
        return dataclasses.replace(self, count=jnp.minimum(self.count, count))


class Tokenizer(nnx.Module):
    """Images are float [B,H,W,3] in [0,1]. A tokenizer defines `analyse` and `synthesise`, and has `lengths`."""

    #: Numbers of latents that a search for a quality tries, ascending; the last is all of them.
    lengths: tuple[int, ...]

    def analyse(self, images: Float[Array, "B H W 3"], *, train: bool = False, key: Array | None = None) -> Code:
        """The whole code."""
        raise TypeError(f"{type(self).__name__} must define analyse(images).")

    def synthesise(self, code: Code, *, key: Array | None = None) -> Float[Array, "B H W 3"]:
        """Images from the first `code.count` latents, not yet clipped to [0,1]."""
        raise TypeError(f"{type(self).__name__} must define synthesise(code).")

    def from_ids(self, ids: Int[Array, "B K"], count: Int[Array, " B"]) -> Code:
        """The code that these ids stand for; ids behind `count` do not matter."""
        raise UserError(f"{type(self).__name__} has continuous latents, no ids.")

    def encode(
        self,
        images: Float[Array, "B H W 3"],
        tokens: int | None = None,
        *,
        quality: float | None = None,
        key: Array | None = None,
    ) -> Code:
        """A code of all latents, of `tokens`, or of the fewest that reach `quality`.

        quality: PSNR in dB of the reconstruction, judged image by image on 8-bit images; an image that does not reach
        it gets all latents. Raises UserError for a length that the tokenizer does not have.
        """
        if tokens is not None and quality is not None:
            raise UserError("give a number of tokens or a quality, not both.")
        if tokens is not None and not self.lengths[0] <= tokens <= self.lengths[-1]:
            raise UserError(
                f"{tokens} tokens are asked for; this tokenizer has {self.lengths[0]} to {self.lengths[-1]}."
            )
        code = self.analyse(images, key=key)
        if quality is not None:
            return code.take(self._least(images, code, quality, key))
        return code if tokens is None else code.take(tokens)

    def decode(self, code: Code, tokens: int | None = None, *, key: Array | None = None) -> Float[Array, "B H W 3"]:
        """Images in [0,1] from a code, or from its first `tokens` latents."""
        code = code if tokens is None else code.take(tokens)
        return jnp.clip(self.synthesise(code, key=key), 0, 1)

    def _least(self, images: Array, code: Code, quality: float, key: Array | None) -> Int[Array, " B"]:
        """The smallest of `lengths` at which every image reaches the quality."""

        def good(length: Array) -> Array:
            again = jnp.round(self.decode(code.take(length), key=key) * 255) / 255
            error = jnp.square(again - images).mean((1, 2, 3))
            return error <= 10 ** (-quality / 10)

        reached = jax.lax.map(good, jnp.asarray(self.lengths, jnp.int32))  # [lengths, B]
        first = jnp.where(reached.any(0), jnp.argmax(reached, 0), len(self.lengths) - 1)
        return jnp.asarray(self.lengths, jnp.int32)[first]
