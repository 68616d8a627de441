"""A picture at growing numbers of tokens, and how many the adaptive rule gave to each of its tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jtok.data.transforms import centre_crop
from jtok.evaluation.metrics.image_quality import psnr
from jtok.evaluation.sweeps.reconstruction import reconstruct, usual_counts
from jtok.tokenizers.codec import Codec, check_quality
from jtok.tokenizers.container import pack
from jtok.tokenizers.protocol import ImageTokenizer

COLUMNS = 3


def draw_prefixes(codec: Codec, picture: UInt8[np.ndarray, "H W 3"], quality: float) -> tuple[Figure, str]:
    """(panels: the picture, what 1, 2, 4, ... tokens a tile say of it, what the adaptive rule takes at `quality` dB,
    and a map of its counts; one sentence about those). Raises UserError for a quality out of range.
    """
    check_quality(quality)
    analysis = codec.analyse(picture)
    counts, most = analysis.at_quality(quality), codec.lengths[-1]
    panels: list[tuple[str, Any]] = [("picture", picture)]
    steps = [2**i for i in range(most.bit_length()) if codec.lengths[0] <= 2**i < most] + [most]
    for tokens in steps:
        each = np.full(analysis.tiling.count, tokens, np.int32)
        panels.append(_decoded(codec, picture, analysis, each, f"{tokens} token{'s'[: tokens > 1]} per tile"))
    span = f"{counts.min()} to {counts.max()}" if analysis.tiling.count > 1 else str(counts[0])
    title, again = _decoded(codec, picture, analysis, counts, f"{quality:g} dB asked for: {span} tokens")
    panels.append((title, again))
    missed = int(analysis.missed(quality).sum())
    said = f"{title.replace(chr(10), ', ')}; {counts.mean():.1f} tokens on average in {len(counts)} tiles"
    said += f", {missed} of which do not reach it" if missed else ""
    figure = _figure(panels, counts.reshape(analysis.tiling.rows, analysis.tiling.columns), most)
    return figure, said


def _decoded(codec: Codec, picture, analysis, counts, title: str) -> tuple[str, np.ndarray]:
    container = codec.container(analysis.tiling, analysis.ids, counts)
    again = codec.decode(container)
    bits = 8 * len(pack(container)) / (picture.shape[0] * picture.shape[1])
    return f"{title}\n{bits:.3f} bits per pixel, {psnr(picture[None] / 255, again[None] / 255)[0]:.2f} dB", again


def draw_whole(tokenizer: ImageTokenizer, picture: UInt8[np.ndarray, "H W 3"]) -> tuple[Figure, str]:
    """(panels: the middle of a picture at the size a tokenizer was made for, and what it keeps at growing numbers of
    tokens; one sentence). For tokenizers whose code is of a whole image."""
    image = centre_crop(picture, tokenizer.image_side, 1.0)
    counts = usual_counts(tokenizer)
    panels: list[tuple[str, Any]] = [("picture", image)]
    for count, made in zip(counts, reconstruct(tokenizer, image[None], counts, batch=1), strict=True):
        held, quality = int(made.used.sum()), psnr(image[None] / 255, made.images)[0]
        of = f" of {count}" if held != count else ""
        panels.append(
            (f"{held}{of} token{'s'[: held > 1]}\n{quality:.2f} dB", np.uint8(np.round(made.images[0] * 255)))
        )
    figure, _ = _grid(panels)
    side = f"{image.shape[1]} x {image.shape[0]} pixels"
    return figure, f"{side} from the picture's middle, {panels[-1][0].replace(chr(10), ', ')}"


def _figure(panels, counts: np.ndarray, most: int) -> Figure:
    figure, axes = _grid(panels, more=1)
    chosen = axes[len(panels)]
    shown = chosen.imshow(counts, vmin=1, vmax=most, cmap="viridis", interpolation="nearest", aspect="equal")
    chosen.set_title("tokens of each tile", fontsize=10)
    figure.colorbar(shown, ax=chosen, shrink=0.7)
    return figure


def _grid(panels, more: int = 0) -> tuple[Figure, np.ndarray]:
    """A figure of titled pictures with room for `more`, and its axes."""
    height, width = panels[0][1].shape[:2]
    rows = -(-(len(panels) + more) // COLUMNS)
    shape = min(max(height / width, 0.3), 3.0)
    figure = Figure(figsize=(4 * COLUMNS, rows * (4 * shape + 0.6)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes, panels, strict=False):
        axis.imshow(image, interpolation="nearest", aspect="equal")
        axis.set_title(title, fontsize=10)
    return figure, axes
