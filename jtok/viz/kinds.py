"""Accuracy against visual tokens, a panel for every kind of question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jtok.errors import UserError
from jtok.viz.pareto import group_lines, line_styles

Record = Mapping[str, Any]


def draw_kinds(records: Sequence[Record], chance: Mapping[str, float]) -> Figure:
    """A panel for "all" and for every kind in `chance`, which is drawn as a dotted line (0 to 1).

    records: mappings with `method`, `family`, `training`, `trained`, `keep`, `tokens_end`, `accuracy` and `kinds` (kind
    to accuracy). The unreduced model is a star and a level line, as in `draw_pareto`.
    Raises UserError when there are no records.
    """
    if not records:
        raise UserError("there is nothing to plot: give at least one record.")
    lines = group_lines(records)
    styles = line_styles(lines)
    names = ["all", *(kind for kind in chance if kind != "all")]
    columns = 4
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(15.5, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        _panel(panel, name, lines, styles, chance[name])
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False, handlelength=3)
    figure.supxlabel("visual tokens left in the decoder's last layer", fontsize=10)
    figure.supylabel("accuracy (%)", fontsize=10)
    return figure


def _panel(panel, name: str, lines: Mapping[str, Sequence[Record]], styles: Mapping[str, Any], chance: float) -> None:
    panel.set_title(name, fontsize=10)
    panel.grid(color="#e6e6e6", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.axhline(100 * chance, color="#b03030", linewidth=1, linestyle=":", label="chance")
    for line, members in lines.items():
        values = [100 * (r["accuracy"] if name == "all" else r["kinds"][name]) for r in members]
        panel.plot([r["tokens_end"] for r in members], values, label=line, **styles[line])
        if line == "unreduced":
            panel.axhline(values[0], color="black", linewidth=0.8, alpha=0.5)
