"""Most pruners are a score: keep the best patches, drop the others."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from jtok import select
from jtok.plan import Memory, Reducer
from jtok.signals import Signals
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Pruner(Reducer):
    """Keeps the `keep` patches of highest score; special tokens stay, padding goes first. A method defines `score`."""

    keep: int
    #: Order of the kept patches: as they lay in the image, or best first.
    order: ClassVar[select.Order] = "spatial"

    def count(self, patches: int) -> int:
        return min(self.keep, patches)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        """Higher stays; the values of special tokens do not matter."""
        raise TypeError(f"{type(self).__name__} must define score(tokens, signals, memory).")

    def best(self, patches: Tokens, score: Float[Array, "B N"]):
        """Indices [B,keep] of the patches that stay."""
        return select.top_k(score, self.keep, valid=patches.valid, order=self.order)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        if self.keep >= patches.count:
            return tokens, memory
        score = self.score(tokens, s, memory)[:, tokens.special :]
        return special.concat(patches.take(self.best(patches, score))), memory
