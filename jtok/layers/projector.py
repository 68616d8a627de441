"""Projectors: from features of a tower to tokens of a language model, possibly fewer of them.

A projector is an `nnx.Module` called as `(tokens, taps, count) -> Tokens`: `taps` are the features of the tower's
layers that it names in `layers_read` ([B,N,D] each, 0 being the embedding), `count` the number of tokens per crop
to produce (None: its own). Its output keeps owners and positions, so that a reducer may be placed after it. A
projector that has been released lists in `names` what its authors call its tensors
(rules of `jtok.checkpoints.rules`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jtok.checkpoints.rules import Rule, linear
from jtok.errors import UserError
from jtok.layers.activations import ACTIVATIONS, Activation
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """An MLP with `depth` linear layers: 2 in LLaVA-1.5 (arXiv:2310.03744), 1 in PaliGemma (arXiv:2407.07726).

    With depth 0 features pass through unchanged.
    """

    inputs: int
    width: int
    depth: int = 2
    hidden: int = 0  # features between two layers; 0 = as many as come out
    act: Activation = "gelu"
    bias: bool = True


class MLPProjector(nnx.Module):
    """Projects every token independently; their number is unchanged."""

    layers_read: Sequence[int] = ()

    def __init__(self, config: ProjectorConfig, dtype, rngs: nnx.Rngs):
        c = self.config = config
        widths = [c.inputs, *[c.hidden or c.width] * (c.depth - 1), c.width][: c.depth + 1]
        kinds = {"use_bias": c.bias, "dtype": dtype, "rngs": rngs}
        self.layers = nnx.List([nnx.Linear(a, b, **kinds) for a, b in zip(widths, widths[1:], strict=False)])

    @property
    def names(self) -> list[Rule]:
        """The authors' names: `0`, `2`, ... in a sequence with activations between, or a single layer."""
        alone = "linear ." if self.config.depth == 1 else ""
        layers = range(self.config.depth)
        return [r for i in layers for r in linear(f"{2 * i} linear_{i + 1} {alone}", f"layers.{i}")]

    def __call__(self, tokens: Tokens, taps: Sequence[Array] = (), count: int | None = None) -> Tokens:
        """Raises UserError if `count` differs from the number of tokens."""
        if count is not None and count != tokens.count:
            raise UserError(f"this projector makes {tokens.count} tokens of {tokens.count}, not {count}: use another.")
        x = tokens.x
        for i, layer in enumerate(self.layers):
            x = layer(ACTIVATIONS[self.config.act](x) if i else x)
        return tokens.replace(x=x)


def mlp_projector(kind: str, target: Target, rngs: nnx.Rngs) -> MLPProjector:
    """A fresh projector of a kind that LLaVA's configs name: `linear`, `identity`, or `mlpKx_gelu` with K layers.

    Raises UserError for another kind, and for `identity` between models of different width.
    """
    match = re.fullmatch(r"linear|identity|mlp([1-9])x_gelu", kind)
    if not match:
        raise UserError(f"there is no projector '{kind}': ask for own, linear, identity or mlp2x_gelu.")
    depth = {"linear": 1, "identity": 0}[kind] if match[1] is None else int(match[1])
    if not depth and target.width != target.language_width:
        raise UserError(f"identity cannot join widths {target.width} and {target.language_width}: project instead.")
    return MLPProjector(ProjectorConfig(target.width, target.language_width, depth), jnp.float32, rngs)
