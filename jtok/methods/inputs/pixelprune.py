"""PixelPrune: drop patches whose pixels are predicted by their neighbours, before the tower.

"PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding", arXiv:2604.00886. Needs no training and
reads only pixels. Each patch is predicted from its left, upper and upper-left neighbours (`pred_2d`): by the upper one
where left and upper-left are alike and upper differs from upper-left, otherwise by the left one. A patch that matches
its prediction is dropped. Patches are embedded with their positions in the whole image first, so the tower and the
language model see fewer tokens with gaps between their positions.

The number left depends on the image: `fitted` sets the smallest cap that holds a known batch; in a program compiled for
any image the cap is all patches, and dropped ones are only masked. The authors' models merge 2 x 2 patches into one
token, and such a group is kept or dropped as a whole; towers here have one token per patch.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jtok.plan import Plan
from jtok.registry import Claim, method
from jtok.slots import InputRule
from jtok.target import Target

Metric = Literal["max", "mae", "rmse", "exact"]
Scan = Literal["pred_2d", "raster", "serpentine"]

#: Caps are multiples of this share of the patches, so that few programs are compiled.
STEP = 1 / 8


@dataclasses.dataclass(frozen=True)
class PixelPrune(InputRule):
    """Keeps the patches that differ from their prediction by more than `threshold` (a share of the pixel range).

    std: the standard deviation by which the tower's pixels were normalised, one per channel; this is undone before
    patches are compared. cap: patch slots (None: all of them). anchored: predict from what a decoder would have
    reconstructed, which matters only for a threshold above 0; raster and serpentine scans always do.
    """

    scan: Scan = "pred_2d"
    metric: Metric = "max"
    threshold: float = 0.0
    anchored: bool = True
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    cap: int | None = None
    adaptive = True

    def count(self, patches: int) -> int:
        return patches if self.cap is None else min(self.cap, patches)

    def keep(self, pixels: Float[Array, "B N V"], grid: tuple[int, int]) -> Bool[Array, "B N"]:
        """pixels: rows, columns and channels of each patch, channels last, as the tower receives them."""
        channels = jnp.tile(jnp.asarray(self.std, jnp.float32), pixels.shape[-1] // len(self.std))
        return unpredicted(pixels.astype(jnp.float32) * channels, grid, self)

    def fitted(self, pixels: Float[np.ndarray, "B N V"], grid: tuple[int, int]) -> PixelPrune:
        largest, step = int(np.asarray(self.keep(jnp.asarray(pixels), grid)).sum(1).max()), STEP * pixels.shape[1]
        return dataclasses.replace(self, cap=min(int(np.ceil(-(-largest // step) * step)), pixels.shape[1]))


def unpredicted(x: Float[Array, "B N V"], grid: tuple[int, int], rule: PixelPrune) -> Bool[Array, "B N"]:
    """Which tokens of a grid, in raster order, differ from their prediction; the first one always does.

    x: values in units of [0, 1]. Raises nothing: any grid will do.
    """
    tau = 0.0 if rule.metric == "exact" else rule.threshold

    def matches(a: Array, b: Array) -> Bool[Array, "..."]:
        gap = jnp.abs(a - b)
        if rule.metric == "mae":
            return gap.mean(-1) <= tau
        if rule.metric == "rmse":
            return jnp.sqrt(jnp.square(gap).mean(-1)) <= tau
        return gap.max(-1) <= tau

    cells = x.reshape(x.shape[0], -1, grid[1], x.shape[-1])  # a video's frames are stacked vertically
    if rule.scan == "pred_2d":
        kept = _anchored(cells, matches) if rule.anchored and tau > 0 else _sliding(cells, matches)
        return kept.reshape(x.shape[:2])
    if rule.scan == "serpentine":  # every second row from right to left
        cells = cells.at[:, 1::2].set(cells[:, 1::2, ::-1])
    kept = _run_length(cells.reshape(x.shape), matches)
    if rule.scan == "serpentine":
        kept = kept.reshape(cells.shape[:3])
        kept = kept.at[:, 1::2].set(kept[:, 1::2, ::-1]).reshape(x.shape[:2])
    return kept


def _predict(left: Array, up: Array, corner: Array, matches) -> Array:
    """The upper neighbour where a horizontal change in the row above carries over, else the left one."""
    from_up = matches(corner, left) & ~matches(corner, up)
    return jnp.where(from_up[..., None], up, left)


def _sliding(x: Float[Array, "B Y X V"], matches) -> Bool[Array, "B Y X"]:
    """Predictions from the true values of the neighbours: all cells at once."""
    first_row = ~matches(x[:, :1, 1:], x[:, :1, :-1])
    first_column = ~matches(x[:, 1:, :1], x[:, :-1, :1])
    inner = ~matches(x[:, 1:, 1:], _predict(x[:, 1:, :-1], x[:, :-1, 1:], x[:, :-1, :-1], matches))
    top = jnp.pad(first_row, [(0, 0), (0, 0), (1, 0)], constant_values=True)
    return jnp.concatenate([top, jnp.concatenate([first_column, inner], 2)], 1)


def _anchored(x: Float[Array, "B Y X V"], matches) -> Bool[Array, "B Y X"]:
    """Predictions from reconstructed neighbours: a dropped cell is replaced by its prediction."""

    def cell(carry, item):
        left, corner, start, top = carry
        value, up, place = item
        predicted = jnp.where(top & (place > 0), left, jnp.where(place > 0, _predict(left, up, corner, matches), up))
        kept = ~matches(value, predicted) | start
        value = jnp.where(kept[:, None], value, predicted)
        return (value, up, jnp.zeros_like(start), top), (value, kept)

    def row(above, item):
        values, number = item  # [X,B,V]
        top = jnp.broadcast_to(number == 0, (x.shape[0], 1))
        carry = (values[0], above[0], top[:, 0], top)
        _, (rebuilt, kept) = jax.lax.scan(cell, carry, (values, above, jnp.arange(values.shape[0])))
        return rebuilt, kept

    cells = jnp.moveaxis(x, 0, 2)  # [Y,X,B,V]
    _, kept = jax.lax.scan(row, cells[0], (cells, jnp.arange(cells.shape[0])))
    return jnp.moveaxis(kept, 2, 0)


def _run_length(x: Float[Array, "B N V"], matches) -> Bool[Array, "B N"]:
    """A cell is kept where it differs from the last one kept."""

    def cell(anchor, value):
        kept = ~matches(value, anchor)
        return jnp.where(kept[:, None], value, anchor), kept

    _, kept = jax.lax.scan(cell, x[:, 0], jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(kept, 0, 1).at[:, 0].set(True)


@method(
    name="pixelprune",
    title="PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding",
    paper="arXiv:2604.00886",
    family="vlm-encoder",
    training="none",
    assignment="none",
    site="before the tower",
    idea="drop patches predictable from neighbouring pixels",
    uses_position=True,
    claims=(Claim("Qwen3-VL", "documents and interfaces", 4.2, metric="inference speed-up (times, at most)"),),
)
def plan(
    target: Target,
    threshold: float = 0.0,
    scan: Scan = "pred_2d",
    metric: Metric = "max",
    anchored: bool = True,
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
) -> Plan:
    """The number of tokens follows from the image and `threshold` (0: lossless), so there is no keep ratio."""
    return Plan(inputs=PixelPrune(scan, metric, threshold, anchored, tuple(std)))
