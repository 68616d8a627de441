"""Quality against bits per pixel, a line a codec, and the report of a rate-distortion sweep."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jtok.errors import UserError
from jtok.viz.files import write_whole
from jtok.viz.page import Cell, page, picture_html, provenance, section, table

Record = Mapping[str, Any]
LOOK = {
    "jtok, fixed": {"color": "#4477aa", "marker": "o", "linestyle": "--"},
    "jtok, adaptive": {"color": "#cc3311", "marker": "s"},
    "JPEG": {"color": "#6b6b6b", "marker": "^"},
    "WebP": {"color": "#117733", "marker": "v"},
}
TEXTS = {"photograph", "codec", "setting"}
POINT = ("codec", "setting", "bits_per_pixel", "psnr", "ssim", "tokens")
CAPTION = (
    "Bits of whole files, headers and all. tokens: of a tile, on average. adaptive: the fewest tokens that give "
    "every tile the PSNR of the setting."
)
COUNTS = (
    "Crops of one tile. reached: share that has the PSNR at any length. spearman_png: rank correlation of the chosen "
    "count with the size as PNG. flat_grey: the count of a flat grey tile."
)


def draw_curves(points: Sequence[Record]) -> Figure:
    """PSNR and SSIM against bits per pixel (logarithmic), a line for each codec.

    points: mappings with `codec`, `bits_per_pixel`, `psnr` (dB) and `ssim`. Raises UserError when there are none.
    """
    if not points:
        raise UserError("there is nothing to plot: give at least one point.")
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for panel, column, label in zip(panels, ("psnr", "ssim"), ("PSNR (dB)", "SSIM"), strict=True):
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set(xscale="log", xlabel="bits per pixel, of whole files", ylabel=label)
        panel.xaxis.set_major_formatter("{x:g}")
        for codec in dict.fromkeys(p["codec"] for p in points):
            line = sorted((p["bits_per_pixel"], p[column]) for p in points if p["codec"] == codec)
            panel.plot(*zip(*line, strict=True), label=codec, markersize=5, linewidth=1.5, **LOOK.get(codec, {}))
    panels[0].legend(frameon=False)
    return figure


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    points: Sequence[Record],
    records: Sequence[Record],
    counts: Sequence[Record],
    figure: Figure,
    config: Mapping[str, Any],
    command: str,
    versions: Mapping[str, str],
    commit: str,
) -> Path:
    """Writes one self-contained HTML file, whole or not at all; returns its path.

    points: means over photographs; records: of each; counts: what adaptive counts follow. Raises UserError when
    nothing can be written at `path`.
    """
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        picture_html("quality against bits per pixel, means over held-out photographs", figure),
        section("Means over photographs", _table(points, POINT, CAPTION)),
        section("Do adaptive counts follow image complexity?", _table(counts, list(counts[0]), COUNTS)),
        section("Every photograph", _table(records, ("photograph", "bytes", *POINT), CAPTION)),
        section("How this was made", provenance(config, command, versions, commit)),
    ]
    return write_whole(path, page(title, "\n".join(parts)).encode())


def _table(records: Sequence[Record], columns: Sequence[str], caption: str) -> str:
    """Texts first, whatever their order in `columns`."""
    columns = sorted(columns, key=lambda c: c not in TEXTS)
    rows = [[_cell(record.get(column)) for column in columns] for record in records]
    return table(columns, rows, caption=caption, texts=len(TEXTS & set(columns)))


def _cell(value: Any) -> Cell:
    if isinstance(value, (int, float)):
        return Cell(str(value) if isinstance(value, int) else f"{value:.4g}", value)
    return Cell(value, kind="text")
