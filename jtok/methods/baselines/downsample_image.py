"""Downsample image: fewer pixels, fewer patches, from the first block on. A baseline that tables often leave out."""

from __future__ import annotations

from jtok.ops import budget
from jtok.plan import Plan, Target
from jtok.registry import method


@method(
    name="downsample-image",
    title="Downsampling the image before the tower",
    paper="baseline",
    family="baseline",
    training="none",
    assignment="none",
    reads=(),
    site="input image",
    idea="shrink the image before cutting it into patches",
    uses_position=True,
)
def plan(target: Target, keep: float = 0.5) -> Plan:
    """The tower sees the image resized (antialiased) to the patch grid nearest to `keep` of the patches."""
    return Plan(grid=budget.coarse_grid(target.grid, keep))
