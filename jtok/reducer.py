"""A reducer makes a token set smaller; wrappers are reducers made of reducers."""

from __future__ import annotations

import dataclasses
from typing import Any

from jtok.signals import Signals
from jtok.tokens import Tokens

Memory = dict[str, Any]


class Reducer:
    """Makes a token set smaller (or only observes it) at a site.

    A training-free reducer is a frozen dataclass, a learned one an `nnx.Module`; both have the same call:
    `(tokens, signals, memory) -> (tokens, memory)`, pure, batched, with a static number of output slots. `memory` is a
    dict of arrays passed from site to site; a method keeps its entry under its own name and returns a new dict
    instead of changing the given one.
    """

    #: Signals that the model must compute for this reducer (keys of `jtok.signals.SIGNALS`).
    reads: tuple[str, ...] = ()
    #: Whether `count` is a cap: the number of tokens left depends on the image.
    adaptive: bool = False
    #: Whether it changes nothing but what tokens carry, and so may be placed where none can be removed.
    observes: bool = False

    def count(self, patches: int) -> int:
        """Patch slots left after this site (a cap, where the number depends on the image); special tokens excluded."""
        return patches

    def __call__(self, tokens: Tokens, signals: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        raise TypeError(f"{type(self).__name__} must define __call__(tokens, signals, memory).")


@dataclasses.dataclass(frozen=True)
class Compose(Reducer):
    """`first`, then `second` at the same site; the second's signals follow the tokens through the first."""

    first: Reducer
    second: Reducer

    @property
    def reads(self) -> tuple[str, ...]:
        """What either of them reads."""
        return tuple(dict.fromkeys((*self.first.reads, *self.second.reads)))

    @property
    def adaptive(self) -> bool:
        """Whether either is."""
        return self.first.adaptive or self.second.adaptive

    @property
    def observes(self) -> bool:
        """Whether both do."""
        return self.first.observes and self.second.observes

    def count(self, patches: int) -> int:
        return self.second.count(self.first.count(patches))

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        outer = tokens.carry
        tokens = tokens.replace(carry={"outer": outer, "signals": s.per_token()})
        tokens, memory = self.first(tokens, s, memory)
        s = s.with_per_token(tokens.carry["signals"])
        carry = {name: a for name, a in tokens.carry.items() if name not in ("outer", "signals")}
        return self.second(tokens.replace(carry={**tokens.carry["outer"], **carry}), s, memory)
