"""Which patches methods keep, and how alike their patterns are: maps over the grid and tables of agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jtok.errors import UserError


def draw_patterns(
    maps: Mapping[str, Float[np.ndarray, "H W"]],
    tables: Mapping[str, tuple[Sequence[str], Float[np.ndarray, "M M"]]],
    title: str = "",
) -> Figure:
    """Maps in a row (one colour scale from 0 to 1: the share of images that keep a patch), tables of agreement below.

    tables: title -> (names of methods, similarity of each pair, 0 to 1). Raises UserError when there are no maps.
    """
    if not maps or not tables:
        raise UserError("there is nothing to draw: give at least one map and one table.")
    figure = Figure(figsize=(max(2.0 * len(maps), 5.2 * len(tables)), 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.9))
    panels = np.atleast_1d(top.subplots(1, len(maps)))
    for panel, (name, shares) in zip(panels, maps.items(), strict=True):
        drawn = panel.imshow(shares, vmin=0, vmax=1, cmap="viridis")
        panel.set(title=name, xticks=[], yticks=[])
    top.colorbar(drawn, ax=list(panels), shrink=0.7, label="share of images")
    for panel, (name, (methods, alike)) in zip(
        np.atleast_1d(bottom.subplots(1, len(tables))), tables.items(), strict=True
    ):
        _table(panel, name, methods, alike)
    if title:
        figure.suptitle(title)
    return figure


def _table(axes: Axes, title: str, methods: Sequence[str], alike: np.ndarray) -> None:
    axes.imshow(alike, vmin=0, vmax=1, cmap="Blues")
    ticks = range(len(methods))
    axes.set_xticks(ticks, methods, rotation=30, ha="right")
    axes.set_yticks(ticks, methods)
    axes.set_title(title)
    axes.spines[:].set_visible(False)
    for i, j in np.ndindex(alike.shape):
        colour = "white" if alike[i, j] > 0.6 else "black"
        axes.text(j, i, f"{alike[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=9)
