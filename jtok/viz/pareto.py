"""Accuracy against cost: one line a method, one point a keep ratio."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jtok.errors import UserError
from jtok.viz.files import write_whole

Record = Mapping[str, Any]
MARKERS = "osD^vPX<>ph8"
GREYS = ("#8c8c8c", "#6b6b6b", "#a6a6a6", "#505050")


def draw_pareto(records: Sequence[Record], *, batch: Literal[1, 8] = 1, title: str = "") -> Figure:
    """Accuracy against GMACs and against measured latency, in two panels with one legend.

    records: mappings with `method`, `family`, `training`, `trained`, `keep`, `accuracy` (0 to 1), `gmacs` and
    `latency_ms_b1` or `latency_ms_b8` ({median, p10, p90}); what is missing or None is not drawn. The unreduced model
    is the record of method "none": a star and a level line. Methods of the family "baseline" are dashed and grey;
    methods trained here have filled markers, the others hollow ones. Colours depend only on which methods there are.
    Raises UserError when there are no records.
    """
    if not records:
        raise UserError("there is nothing to plot: give at least one record.")
    lines = group_lines(records)
    styles = line_styles(lines)
    figure = Figure(figsize=(13.5, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    latency = f"latency_ms_b{batch}"
    _panel(left, lines, styles, lambda r: _spread(r.get("gmacs")))
    _panel(right, lines, styles, lambda r: _spread(r.get(latency)))
    left.set(xlabel="GMACs per image", ylabel="accuracy (%)")
    right.set(xlabel=f"measured latency at batch {batch} (ms a batch, median; bars: p10 to p90)")
    handles, names = _legend_entries(left, right)
    if handles:
        figure.legend(handles, names, loc="outside right center", fontsize=9, frameon=False, handlelength=3)
    if title:
        figure.suptitle(title)
    return figure


def save_figure(path: str | os.PathLike, figure: Figure, dpi: int = 150) -> Path:
    """Writes a PNG, whole or not at all. Raises UserError when nothing can be written there."""
    return write_whole(path, figure_png(figure, dpi))


def figure_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG bytes, without a date in them, so that the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def line_name(record: Record) -> str:
    """What a record's line is called: the method, and for a learned one whether it was trained."""
    method, training = str(record["method"]), record.get("training", "none")
    if method == "none":
        return "unreduced"
    if record.get("trained"):
        return f"{method} (trained)"
    return f"{method} (untrained)" if training == "required" else method


def group_lines(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by line, the unreduced model first, then in alphabetical order; each sorted by falling keep ratio."""
    names = sorted({line_name(r) for r in records}, key=lambda name: (name != "unreduced", name))
    return {
        name: sorted((r for r in records if line_name(r) == name), key=lambda r: -float(r.get("keep") or 0))
        for name in names
    }


def line_styles(lines: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, Any]]:
    """Matplotlib line properties of each line; no two methods alike for up to 99 methods and 44 baselines.

    A learned method has one colour and marker, filled and solid where it was trained, hollow and dotted where not.
    """
    baselines = {str(rs[0]["method"]) for rs in lines.values() if rs[0].get("family") == "baseline"}
    others = {str(rs[0]["method"]) for rs in lines.values()} - baselines - {"none"}
    colours = colormaps["tab10"].colors[:7] + colormaps["tab10"].colors[8:]  # without its grey
    look = {m: {"color": GREYS[i % len(GREYS)], "marker": MARKERS[i % 11]} for i, m in enumerate(sorted(baselines))}
    look |= {m: {"color": colours[i % 9], "marker": MARKERS[i % 11]} for i, m in enumerate(sorted(others))}
    styles = {}
    for name, records in lines.items():
        method, trained = str(records[0]["method"]), bool(records[0].get("trained"))
        if method == "none":
            styles[name] = {"color": "black", "marker": "*", "markersize": 15, "linestyle": "none", "zorder": 5}
            continue
        dash = "--" if method in baselines else ":" if name.endswith("(untrained)") else "-"
        styles[name] = {**look[method], "markersize": 6.5, "linewidth": 1.5, "linestyle": dash}
        if not trained:
            styles[name]["markerfacecolor"] = "white"
    return styles


def _spread(value: Any) -> tuple[float, float, float] | None:
    """(median, p10, p90) of a number or of a mapping of the three."""
    if isinstance(value, Mapping):
        median = value.get("median")
        return None if median is None else (median, value.get("p10") or median, value.get("p90") or median)
    return None if value is None else (float(value),) * 3


def _panel(
    axes: Axes, lines: Mapping[str, Sequence[Record]], styles: Mapping[str, Mapping[str, Any]], cost: Any
) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = False
    for name, records in lines.items():
        points = [(cost(r), 100 * r["accuracy"]) for r in records if cost(r) and r.get("accuracy") is not None]
        if not points:
            continue
        drawn = True
        x, y = [c[0] for c, _ in points], [a for _, a in points]
        bars = [max(c[0] - c[1], 0) for c, _ in points], [max(c[2] - c[0], 0) for c, _ in points]
        if any(map(any, bars)):
            axes.errorbar(x, y, xerr=bars, fmt="none", ecolor=styles[name]["color"], alpha=0.35, elinewidth=1)
        axes.plot(x, y, label=name, **styles[name])
        if name == "unreduced":
            axes.axhline(y[0], color="black", linewidth=0.8, alpha=0.5)
    if not drawn:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#777777")


def _legend_entries(*panels: Axes) -> tuple[list[Any], list[str]]:
    """Every line once, the best at its smallest keep ratio first, in the order of the lines in the plot."""
    found = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = sorted(found, key=lambda name: (name != "unreduced", -found[name].get_ydata()[-1], name))
    return [found[name] for name in order], order
