"""M3: nested sets of visual tokens, coarse to fine, from which the user picks the size a question needs.

"Matryoshka Multimodal Models", arXiv:2405.17430, ICLR 2025. The projected patches are averaged over square windows; on
24x24 patches, windows of 1, 2, 4, 8 and 24 give 576, 144, 36, 9 and 1 tokens, each set an average of the next finer
one. The model is trained on all of them at once: every step takes the mean loss over the scales.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import Array

from jtok.errors import UserError
from jtok.layers.projector import mlp_projector
from jtok.ops import budget
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.slots import Training
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Matryoshka(Reducer):
    """Averages windows of a square grid, crop by crop, so that about `scale` tokens are left.

    The window's side is floor(sqrt(patches / scale)); rows and columns that fill no window are dropped.
    """

    scale: int

    def window(self, side: int) -> int:
        """Side of the windows on a grid of side x side patches."""
        return math.isqrt(side * side // self.scale)

    def count(self, patches: int) -> int:
        """Tokens per crop; the scale itself where windows fit."""
        side = math.isqrt(patches)
        return (side // self.window(side)) ** 2

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        side = tokens.grid[0]
        cells = side // self.window(side)
        place = np.arange(side) // self.window(side)
        place = np.where(place < cells, place, -1)
        inside = (place[:, None] >= 0) & (place >= 0)
        table = np.where(inside, place[:, None] * cells + place, -1)
        return tokens.pool(table, cells * cells), memory


@dataclasses.dataclass(frozen=True)
class AllScales:
    """A training step runs every scale."""

    scales: tuple[int, ...]

    def __call__(self, plan: Plan, key: Array) -> list[Plan]:
        return [dataclasses.replace(plan, sites={"projector": Matryoshka(scale)}) for scale in self.scales]


def nested_scales(side: int) -> tuple[int, ...]:
    """Token counts of nesting windows, coarsest first: each window is the last one times the smallest prime that fits.

    24 a side: 1, 9, 36, 144, 576.
    """
    windows = [1]
    while windows[-1] < side:
        factor = side // windows[-1]
        windows.append(windows[-1] * next(p for p in range(2, factor + 1) if factor % p == 0))
    return tuple((side // w) ** 2 for w in reversed(windows))


@method(
    name="m3",
    title="Matryoshka Multimodal Models",
    paper="arXiv:2405.17430, ICLR 2025",
    family="vlm-projector",
    training="required",
    assignment="hard",
    site="after the projector",
    idea="nested average-pooled token sets, size chosen at inference",
    uses_position=True,
    claims=(
        Claim(
            "M3",
            "accuracy like that of all 576 tokens on COCO-style benchmarks",
            9,
            metric="visual tokens needed, about",
        ),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    tokens: int | None = None,
    scales: Sequence[int] | None = None,
    projector: str = "own",
    rngs: nnx.Rngs | None = None,
) -> Plan:
    """`tokens` must be one of the scales, by default those whose windows nest; else the scale nearest to `keep`.

    projector: `own`, the model's, or a fresh one such as `mlp2x_gelu`, into which a released M3 projector can be
    loaded. Tokens are renumbered. All crops are pooled in the same way.
    """
    side = target.grid[0]
    if target.grid != (side, side):
        raise UserError(f"m3 needs a square grid, and this one has {target.grid[0]}x{target.grid[1]} patches.")
    scales = nested_scales(side) if scales is None else tuple(sorted(scales))
    if not scales or not all(1 <= s <= target.patches for s in scales):
        raise UserError(f"m3 has scales {scales} of {target.patches} patches: each must be 1 to that many.")
    scale = budget.nearest_count("m3", scales, target.patches, keep, tokens)
    fresh = None if projector == "own" else mlp_projector(projector, target, rngs or nnx.Rngs(0))
    return Plan(
        {"projector": Matryoshka(scale)},
        projector=fresh,
        positions="renumber",
        training=Training(variants=AllScales(tuple(scales))),
    )
