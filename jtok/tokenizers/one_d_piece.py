"""One-D-Piece: TiTok whose code may be cut anywhere, because its tail was dropped at random in training.

"One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression", arXiv:2501.10064, 2025. Everything else is that
of a legacy TiTok with 256 latents. The drop comes behind the quantizer, so its losses see all codes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jtok.tokenizers.code import Code
from jtok.tokenizers.titok import SIZES, TiTokConfig


def one_d_piece(size: str = "large", **changes) -> TiTokConfig:
    """The config of a released One-D-Piece, of `small`, `base` or `large` size; stage 2, with the pixel decoder."""
    shape = {"encoder": SIZES[size], "decoder": SIZES[size]}
    released = TiTokConfig(tokens=256, **shape, legacy=True, pixels=True, drop_tail=True)
    return dataclasses.replace(released, **changes)


def drop_tail(code: Code, key: Array, *, per_image: bool = False) -> tuple[Code, Int[Array, " B"]]:
    """(the code with a random tail dropped, how many stay): uniform in 1..K, one number a batch as in the paper.

    per_image: an own number for every image, which the paper does not do.
    """
    b, k = code.latents.shape[:2]
    drawn = jax.random.randint(key, (b if per_image else 1,), 1, k + 1)
    count = jnp.broadcast_to(drawn, (b,))
    return code.take(count), count
