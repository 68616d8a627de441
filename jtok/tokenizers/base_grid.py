"""The frozen 2-D base tokenizer of ALIT and KARL: what they require of it, and how they predict its codes."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jtok.errors import UserError


class BaseTokenizer(Protocol):
    """A 2-D tokenizer: images [B,H,W,3] in [0,1] to a grid of E `channels`, one place per `stride` pixels on each side,
    and back. codes: size of its codebook, 0 for a VAE."""

    @property
    def channels(self) -> int: ...

    @property
    def stride(self) -> int: ...

    @property
    def codes(self) -> int: ...

    def encode(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B g g E"]:
        """Continuous codes, before any quantizer."""
        ...

    def decode(self, grid: Float[Array, "B g g E"]) -> Float[Array, "B H W 3"]:
        """Images of codes."""
        ...


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a tokenizer requires of its base: the three sizes of `BaseTokenizer`; any `stride` if None."""

    channels: int
    stride: int | None
    codes: int

    def check(self, base: BaseTokenizer, source: str) -> None:
        """Raises UserError for a base of other sizes; `source` is its file."""
        if base.channels != self.channels:
            raise UserError(f"'{source}' has codes of {base.channels} channels; the tokenizer needs {self.channels}.")
        if self.stride is not None and base.stride != self.stride:
            raise UserError(
                f"'{source}' has one code for {base.stride} pixels a side; the tokenizer needs {self.stride}."
            )
        if base.codes != self.codes:
            trained = self.codes or "a VAE"
            raise UserError(f"'{source}' has {base.codes or 'no'} codes; the tokenizer was trained on {trained}.")


class Frozen(nnx.Variable):
    """A parameter of a base tokenizer: it is no `nnx.Param`, so it is neither trained nor saved with what is built on
    it."""


def frozen(base: nnx.Module) -> nnx.Module:
    """The module with all its parameters frozen, in place."""
    for _, part in nnx.iter_modules(base):
        for name, value in list(vars(part).items()):
            if isinstance(value, nnx.Param):
                setattr(part, name, Frozen(value[...]))
    return base


class GuessHead(nnx.Module):
    """Linear, tanh, linear: logits over the base's codebook, or its code itself where the base has none."""

    def __init__(self, width: int, outputs: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(width, 2 * width, rngs=rngs)
        self.out = nnx.Linear(2 * width, outputs, rngs=rngs)

    def __call__(self, h: Float[Array, "B N D"]) -> Float[Array, "B N C"]:
        return self.out(jnp.tanh(self.hidden(h.astype(jnp.float32))))


def guessed_code(guess: Float[Array, "B N C"], codebook: Float[Array, "C E"] | None) -> Float[Array, "B N E"]:
    """The expected code under the logits, or the guess itself."""
    return guess if codebook is None else jax.nn.softmax(guess, -1) @ codebook


def as_image(base: BaseTokenizer | None, codes: Float[Array, "B N E"]) -> Float[Array, "B H W 3"]:
    """Images of a square grid of codes; raises UserError where there is no base tokenizer."""
    if base is None:
        raise UserError("this tokenizer was made without its base tokenizer: it gives codes of a grid, no pixels.")
    side = round(codes.shape[1] ** 0.5)
    return base.decode(codes.reshape(codes.shape[0], side, side, -1))
