"""A code, and what tokenizers share: they encode an image into a code of some length, and decode it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.checkpoints.safetensor_files import Weights
from jtok.errors import UserError
from jtok.tokenizers.base_grid import BaseTokenizer, Needs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Code:
    """A batch of coded images: K latents each, of which the first `count` are valid.

    ids: int32 [B,K] (None for continuous latents). losses: of the bottleneck, in training. extra: further outputs of
    a method (the halting probabilities of KARL, the roll-outs of ALIT).
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
    """What `jtok.tokenizers.protocol.ImageTokenizer` asks for, as most tokenizers implement it.

    A tokenizer defines `analyse`, `synthesise` and `names`, and sets `config`, `lengths` and `quantizer`.
    """

    prefix: ClassVar[bool] = True
    base_slot: ClassVar[str | None] = None
    beside: ClassVar[tuple[str, ...]] = ()
    lengths: tuple[int, ...]

    def analyse(self, images: Float[Array, "B H W 3"], *, train: bool = False, key: Array | None = None) -> Code:
        """The whole code."""
        raise TypeError(f"{type(self).__name__} must define analyse(images).")

    def synthesise(self, code: Code, *, key: Array | None = None) -> Float[Array, "B H W 3"]:
        """Images from the first `code.count` latents, not yet clipped to [0,1]."""
        raise TypeError(f"{type(self).__name__} must define synthesise(code).")

    def from_ids(self, ids: Int[Array, "B K"], count: Int[Array, " B"]) -> Code:
        """The code of the given ids; ids after `count` are ignored."""
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

        quality: PSNR in dB of the reconstruction, measured per image after rounding to 8 bits; an image that does not
        reach it gets all latents. Raises UserError for images of another size or dtype, and for a length that the
        tokenizer does not have.
        """
        self.check_request(images, tokens, quality)
        code = self.analyse(images, key=key)
        if quality is not None:
            return code.take(self._least(images, code, quality, key))
        return code if tokens is None else code.take(tokens)

    def check_request(self, images: Array, tokens: int | None, quality: float | None) -> None:
        """Raises UserError for images, or a number of tokens, that the tokenizer does not take."""
        self.check_images(images)
        if tokens is not None and quality is not None:
            raise UserError("give a number of tokens or a quality, not both.")
        if tokens is not None:
            self.check_count(tokens)

    def check_images(self, images: Array) -> None:
        """Raises UserError for anything but float [B,S,S,3] with S = `image_side`."""
        side = self.image_side
        if images.ndim != 4 or images.shape[1:] != (side, side, 3):
            raise UserError(f"images of shape {images.shape} are given; this tokenizer reads [B, {side}, {side}, 3].")
        check_float(images)

    def check_count(self, tokens: int) -> None:
        """Raises UserError for a number of tokens that the tokenizer does not have."""
        low, high = (self.lengths[0] if self.prefix else 1), self.longest
        if not low <= tokens <= high:
            raise UserError(f"{tokens} tokens are requested; this tokenizer has {low} to {high}.")

    def decode(self, code: Code, tokens: int | None = None, *, key: Array | None = None) -> Float[Array, "B H W 3"]:
        """Images in [0,1] from a code, or from its first `tokens` latents."""
        code = code if tokens is None else code.take(tokens)
        return jnp.clip(self.synthesise(code, key=key), 0, 1)

    @property
    def longest(self) -> int:
        """Largest number of tokens that can be requested."""
        return self.lengths[-1]

    @property
    def codes(self) -> int:
        """Number of ids, 0 for continuous latents."""
        return getattr(self.quantizer, "size", 0)

    @property
    def image_side(self) -> int:
        """Side in pixels of the images that it is made for."""
        return self.config.image

    @property
    def codec_ready(self) -> bool:
        """Whether it codes images of any size tile by tile; a tokenizer must opt in."""
        return False

    def bits(self, count: float, length: int, each: float | None = None) -> float:
        """Bits of an image of which the first `count` of `length` tokens are kept, without the count's own bits."""
        return count * (math.log2(max(self.codes, 1)) if each is None else each)

    @property
    def base_needs(self) -> Needs | None:
        """What it requires of a base; None for a tokenizer without one."""
        return None

    def put_base(self, base: BaseTokenizer) -> None:
        """Sets the base tokenizer; raises UserError for a tokenizer without a base."""
        if self.base_slot is None:
            raise UserError(f"a {type(self).__name__} uses no base tokenizer: leave the base out.")
        setattr(self, self.base_slot, nnx.data(base) if isinstance(base, nnx.Module) else base)

    @classmethod
    def released_config(cls, weights: Weights) -> Any | None:
        """The config of a checkpoint of the authors; none is known by default."""
        return None

    def release(self) -> dict[str, Any]:
        """The authors' config.json; raises UserError, since by default there is none."""
        raise UserError(f"{type(self).__name__} has no released format here: export it as stablehlo.")

    def _least(self, images: Array, code: Code, quality: float, key: Array | None) -> Int[Array, " B"]:
        """The smallest of `lengths` at which every image reaches the quality."""

        def good(length: Array) -> Array:
            reconstruction = jnp.round(self.decode(code.take(length), key=key) * 255) / 255
            error = jnp.square(reconstruction - images).mean((1, 2, 3))
            return error <= 10 ** (-quality / 10)

        reached = jax.lax.map(good, jnp.asarray(self.lengths, jnp.int32))  # [lengths, B]
        first = jnp.where(reached.any(0), jnp.argmax(reached, 0), len(self.lengths) - 1)
        return jnp.asarray(self.lengths, jnp.int32)[first]


def check_float(images: Array) -> None:
    """Raises UserError for integer images."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(f"images are {images.dtype}; they must be floats in [0, 1]: divide bytes by 255.")
