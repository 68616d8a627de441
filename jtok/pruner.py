"""Pruners by score: keep the best patches, drop the others."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from jtok.ops import budget, select
from jtok.reducer import Memory, Reducer
from jtok.signals import Signals
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Pruner(Reducer):
    """Keeps the `keep` patches of highest score; special tokens stay, padding goes first. Methods define `score`."""

    keep: int
    #: Order of the kept patches: as in the image, or best first.
    order: ClassVar[select.Order] = "spatial"

    def count(self, patches: int) -> int:
        return min(self.keep, patches)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        """Higher is kept; the values of special tokens are ignored."""
        raise TypeError(f"{type(self).__name__} must define score(tokens, signals, memory).")

    def best(self, patches: Tokens, score: Float[Array, "B N"]):
        """Indices [B,keep] of the patches kept."""
        return select.top_k(score, self.keep, valid=patches.valid, order=self.order)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        if self.keep >= patches.count:
            return tokens, memory
        score = self.score(tokens, s, memory)[:, tokens.special :]
        return special.concat(patches.take(self.best(patches, score))), memory


@dataclasses.dataclass(frozen=True)
class SharePruner(Reducer):
    """Keeps the best share `keep` of the visual tokens that a row had at the method's first site, in order.

    For language models: rows of a batch may differ in their number of images or crops, so slots do not tell how many
    tokens a row has. There are no special tokens. Methods define `score`.
    """

    keep: float

    def count(self, patches: int) -> int:
        """As at the method's first site."""
        return budget.share_of(patches, self.keep)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        """Higher is kept."""
        raise TypeError(f"{type(self).__name__} must define score(tokens, signals, memory).")

    def best(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Array, Array, Memory]:
        """(indices [B,K] of the tokens kept, which of them are real [B,K], memory)."""
        name = type(self).__module__.rpartition(".")[2]  # the method's: files are named after methods
        first = memory.get(name, tokens.mask())  # [B,N] tokens valid at the first site
        n = first.shape[1]
        each = budget.share_of_each(first.sum(1), n, self.keep)
        cap = min(budget.share_of(n, self.keep), tokens.count)
        score = self.score(tokens, s, memory)
        return *select.top_each(score, each, cap, valid=tokens.valid), {**memory, name: first}

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        index, counts, memory = self.best(tokens, s, memory)
        return tokens.take(index, None if tokens.valid is None else counts), memory
