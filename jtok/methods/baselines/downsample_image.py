"""Downsample image: fewer pixels, hence fewer patches, from the first block on. Tables often omit this baseline."""

from __future__ import annotations

import dataclasses

from jtok.ops import budget
from jtok.plan import Plan
from jtok.registry import method
from jtok.slots import InputRule
from jtok.target import Target


@dataclasses.dataclass(frozen=True)
class Resize(InputRule):
    """Resizes the image to `grid` = (rows, columns) of patches."""

    grid: tuple[int, int]


@method(
    name="downsample-image",
    title="Downsampling the image before the tower",
    paper="baseline",
    family="baseline",
    training="none",
    assignment="none",
    site="input image",
    idea="shrink the image before splitting it into patches",
    uses_position=True,
)
def plan(target: Target, keep: float = 0.5) -> Plan:
    """The tower sees the image resized (antialiased) to the patch grid nearest to `keep` of the patches."""
    return Plan(inputs=Resize(budget.coarse_grid(target.grid, keep)))
