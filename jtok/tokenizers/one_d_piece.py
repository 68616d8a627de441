"""One-D-Piece: TiTok whose code can be truncated anywhere, since its tail is dropped at random in training.

"One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression", arXiv:2501.10064, 2025. Everything else is that
of a legacy TiTok with 256 latents. The tail is dropped after the quantizer, whose losses therefore cover all codes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jtok.registry import Claim
from jtok.tokenizers.code import Code
from jtok.tokenizers.registry import tokenizer
from jtok.tokenizers.titok import SIZES, TiTokConfig

_RFID = "ImageNet-1k 256 px rFID"


@tokenizer(
    name="one-d-piece",
    title="One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression",
    paper="arXiv:2501.10064",
    family="tokenizer-1d",
    training="two stages, as TiTok; the tail is dropped at random",
    counts="prefix",
    generator="MaskGIT",
    idea="a TiTok whose code may be cut anywhere",
    toy={"image": 16, "patch": 4, "tokens": 8, "encoder": (32, 1, 2), "decoder": (32, 1, 2)}
    | {"codebook": 32, "code_width": 4, "proxy": 8, "proxy_width": 32, "pixel_width": 32}
    | {"pixel_multipliers": (1, 1, 1), "pixel_blocks": 1},
    claims=(
        Claim("One-D-Piece-L", "256 tokens", 1.08, _RFID),
        Claim("One-D-Piece-B", "256 tokens", 1.11, _RFID),
        Claim("One-D-Piece-S", "256 tokens", 1.48, _RFID),
    ),
)
def one_d_piece(size: str = "large", **changes) -> TiTokConfig:
    """The config of a released One-D-Piece, of `small`, `base` or `large` size; stage 2, with the pixel decoder."""
    shape = {"encoder": SIZES[size], "decoder": SIZES[size]}
    released = TiTokConfig(tokens=256, **shape, legacy=True, pixels=True, drop_tail=True)
    return dataclasses.replace(released, **changes)


def drop_tail(code: Code, key: Array, *, per_image: bool = False) -> tuple[Code, Int[Array, " B"]]:
    """(the code with a random tail dropped, the number kept): uniform in 1..K, one number per batch as in the paper.

    per_image: a number for each image, unlike the paper.
    """
    b, k = code.latents.shape[:2]
    drawn = jax.random.randint(key, (b if per_image else 1,), 1, k + 1)
    count = jnp.broadcast_to(drawn, (b,))
    return code.take(count), count
