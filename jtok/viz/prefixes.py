"""A picture at growing numbers of tokens, and how many the adaptive rule gave to each of its tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jtok.evaluation.image_quality import psnr
from jtok.tokenizers.codec import Codec, check_quality
from jtok.tokenizers.container import pack

COLUMNS = 3


def draw_prefixes(codec: Codec, picture: UInt8[np.ndarray, "H W 3"], quality: float) -> tuple[Figure, str]:
    """(panels: the picture, what 1, 2, 4, ... tokens a tile say of it, what the adaptive rule takes at `quality` dB,
    and a map of its counts; one sentence about those). Raises UserError for a quality out of range.
    """
    check_quality(quality)
    found = codec.analyse(picture)
    counts, most = found.at_quality(quality), codec.lengths[-1]
    panels: list[tuple[str, Any]] = [("picture", picture)]
    steps = [2**i for i in range(most.bit_length()) if codec.lengths[0] <= 2**i < most] + [most]
    for tokens in steps:
        each = np.full(found.tiling.count, tokens, np.int32)
        panels.append(_decoded(codec, picture, found, each, f"{tokens} token{'s'[: tokens > 1]} a tile"))
    span = f"{counts.min()} to {counts.max()}" if found.tiling.count > 1 else str(counts[0])
    title, again = _decoded(codec, picture, found, counts, f"{quality:g} dB asked for: {span} tokens")
    panels.append((title, again))
    missed = int(found.missed(quality).sum())
    said = f"{title.replace(chr(10), ', ')}; {counts.mean():.1f} tokens on average in {len(counts)} tiles"
    said += f", {missed} of which do not reach it" if missed else ""
    figure = _figure(panels, counts.reshape(found.tiling.rows, found.tiling.columns), most)
    return figure, said


def _decoded(codec: Codec, picture, found, counts, title: str) -> tuple[str, np.ndarray]:
    container = codec.container(found.tiling, found.ids, counts)
    again = codec.decode(container)
    bits = 8 * len(pack(container)) / (picture.shape[0] * picture.shape[1])
    return f"{title}\n{bits:.3f} bits per pixel, {psnr(picture[None] / 255, again[None] / 255)[0]:.2f} dB", again


def _figure(panels, counts: np.ndarray, most: int) -> Figure:
    height, width = panels[0][1].shape[:2]
    rows = -(-(len(panels) + 1) // COLUMNS)
    shape = min(max(height / width, 0.3), 3.0)
    figure = Figure(figsize=(4 * COLUMNS, rows * (4 * shape + 0.6)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes, panels, strict=False):
        axis.imshow(image, interpolation="nearest", aspect="equal")
        axis.set_title(title, fontsize=10)
    chosen = axes[len(panels)]
    shown = chosen.imshow(counts, vmin=1, vmax=most, cmap="viridis", interpolation="nearest", aspect="equal")
    chosen.set_title("tokens of each tile", fontsize=10)
    figure.colorbar(shown, ax=chosen, shrink=0.7)
    return figure
