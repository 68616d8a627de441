"""Projectors: from features of a tower to tokens of a language model, possibly fewer of them.

A projector is an `nnx.Module` called as `(tokens, taps, count) -> Tokens`: `taps` are the features of the tower's
layers that it names in `layers_read` ([B,N,D] each, 0 being the embedding), `count` the number of tokens a crop shall
become (None: its own). What it returns carries owners and positions on, so that a reducer may stand behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from flax import nnx
from jaxtyping import Array

from jtok.errors import UserError
from jtok.models.block import ACTIVATIONS
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """A perceptron with `depth` linear layers: 2 in LLaVA-1.5 (arXiv:2310.03744), 1 in PaliGemma (arXiv:2407.07726)."""

    inputs: int
    width: int
    depth: int = 2
    act: Literal["gelu", "gelu_tanh"] = "gelu"
    bias: bool = True


class Perceptron(nnx.Module):
    """Projects every token by itself; as many come out as went in."""

    layers_read: Sequence[int] = ()

    def __init__(self, config: ProjectorConfig, dtype, rngs: nnx.Rngs):
        c = self.config = config
        widths = [c.inputs] + [c.width] * c.depth
        kinds = {"use_bias": c.bias, "dtype": dtype, "rngs": rngs}
        self.layers = nnx.List([nnx.Linear(a, b, **kinds) for a, b in zip(widths, widths[1:], strict=False)])

    def __call__(self, tokens: Tokens, taps: Sequence[Array] = (), count: int | None = None) -> Tokens:
        """Raises UserError if `count` differs from the number of tokens."""
        if count is not None and count != tokens.count:
            raise UserError(f"this projector makes {tokens.count} tokens of {tokens.count}, not {count}: use another.")
        x = tokens.x
        for i, layer in enumerate(self.layers):
            x = layer(ACTIVATIONS[self.config.act](x) if i else x)
        return tokens.replace(x=x)
