"""What an image or a video becomes: pixels for the tower, and one description of the visual tokens made of them.

A tower gives `features` vectors, flattened over crops in raster order. The language model reads `tokens` made of them:
the padding of a mosaic of crops is removed, a grid may be resampled, newline tokens are inserted. `Span` describes this
in a few numbers; `layout` lists it per token, so that the model can gather features and a reducer knows their places.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Kind = Literal["image", "video"]


@dataclasses.dataclass(frozen=True)
class Span:
    """A grid of visual tokens in raster order: of one crop, of a mosaic of crops, or of the frames of a video.

    `frames` crops follow each other, or `tiles` of them lie beside each other. Of their joined feature grid the
    `window` (top, left, rows, columns) is kept, then resampled bilinearly to `grid` where the two differ.
    """

    kind: Kind
    grid: tuple[int, int]  # rows, columns of tokens
    patches: tuple[int, int]  # rows, columns of features in each crop
    crop: int = 0  # index of the first crop within the image or video
    tiles: tuple[int, int] = (1, 1)  # crops down, crops across
    frames: int = 1
    window: tuple[int, int, int, int] | None = None  # None = all
    special: int = 0  # class tokens in front of each crop's features; kept, and so part of the span
    newline: Literal["none", "row", "end"] = "none"  # after each row, or one after everything

    @property
    def tokens(self) -> int:
        """Number of visual tokens, class and newline tokens included."""
        rows, columns = self.grid
        body = self.frames * rows * (columns + (self.newline == "row"))
        return self.special + body + (self.newline == "end")

    @property
    def kept(self) -> tuple[int, int, int, int]:
        """`window`, spelled out when it is None."""
        if self.window is not None:
            return self.window
        return 0, 0, self.patches[0] * self.tiles[0], self.patches[1] * self.tiles[1]

    @property
    def resampled(self) -> bool:
        return self.kept[2:] != self.grid


@dataclasses.dataclass(frozen=True)
class VisualInput:
    """One image or one video, ready for the model.

    `pixels` is [crops, 3, H, W], or [patches, values] where the tower takes patches (Qwen2.5-VL); float32, normalised.
    `slots` is its number of ids in the prompt: one per visual token, or one in total where the language model
    cross-attends to the image (Llama-3.2-Vision).
    """

    kind: Kind
    pixels: np.ndarray
    size: tuple[int, int]  # rows, columns of the original
    spans: tuple[Span, ...]
    slots: int
    grid: tuple[int, int, int] | None = None  # time, rows, columns of patches (Qwen2.5-VL)
    seconds: float = 1.0  # between two steps of the time axis of a video (Qwen2.5-VL)
    aspect: int | None = None  # id of the arrangement of tiles (Llama-3.2-Vision)
    real: int | None = None  # crops that are not padding; None = all

    @property
    def tokens(self) -> int:
        """Number of visual tokens over all spans."""
        return sum(span.tokens for span in self.spans)

    @property
    def features(self) -> int:
        """Number of feature vectors that the tower gives, padding crops included: what `Layout.source` counts."""
        span = self.spans[0]
        crops = span.frames if self.grid else len(self.pixels)
        return crops * (span.special + span.patches[0] * span.patches[1])


@dataclasses.dataclass(frozen=True)
class Layout:
    """The visual tokens of one image or video, one entry per token (N of them).

    A token is the sum over K of `weight` times the feature at `source`; K is 1, or 4 where a grid is resampled. A
    newline token has source -1 and weight 0: the model puts its learned vector there. `home` is the inverse: the token
    of every feature, or the nearest one where a grid is resampled; -1 = cropped.
    """

    source: Int[np.ndarray, "N K"]
    weight: Float[np.ndarray, "N K"]
    crop: Int[np.ndarray, " N"]  # crop, tile or frame; that of its left neighbour for a newline token
    position: Float[np.ndarray, "N 3"]  # time, row, column on the span's grid; -1 for class tokens
    newline: Bool[np.ndarray, " N"]
    span: Int[np.ndarray, " N"]
    resampled: Bool[np.ndarray, " N"]  # the token's grid is: it is no single feature
    home: Int[np.ndarray, " F"]

    def __len__(self) -> int:
        return len(self.source)


def layout(spans: tuple[Span, ...]) -> Layout:
    """The per-token description of an image's spans, in their order."""
    taps = 4 if any(span.resampled for span in spans) else 1
    parts = [_span(span, index, taps) for index, span in enumerate(spans)]
    names = parts[0].keys()
    joined = {name: np.concatenate([part[name] for part in parts]) for name in names}
    return Layout(**joined, home=_home(spans))


def bilinear(size: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower neighbour, upper neighbour, share of the upper) for each of `out` samples along an axis of `size`.

    Samples are at pixel centres, without antialiasing (`align_corners=False` in torch).
    """
    at = np.maximum((np.arange(out) + 0.5) * (size / max(out, 1)) - 0.5, 0)
    low = at.astype(np.int64)
    return low, np.minimum(low + 1, size - 1), at - low


def _home(spans: tuple[Span, ...]) -> np.ndarray:
    """The token of every feature; features after the last span's crops are left out."""
    crops = max(span.crop + span.frames * span.tiles[0] * span.tiles[1] for span in spans)
    home = np.full(crops * _per_crop(spans[0]), -1, np.int32)
    first = 0
    for span in spans:
        top, left, height, width = span.kept
        (rows, columns), closed = span.grid, int(span.newline == "row")
        if height and width:
            y, x, frame = np.arange(height)[:, None], np.arange(width)[None], np.arange(span.frames)[:, None, None]
            near = [((2 * at + 1) * n // (2 * size)) for at, n, size in ((y, rows, height), (x, columns, width))]
            feature = _feature(span, top + y, left + x) + frame * _per_crop(span)
            home[feature] = first + span.special + (frame * rows + near[0]) * (columns + closed) + near[1]
        home[span.crop * _per_crop(span) + np.arange(span.special)] = first + np.arange(span.special)
        first += span.tokens
    return home


def _span(span: Span, index: int, taps: int) -> dict[str, np.ndarray]:
    source, weight, crop, position, newline = _grid(span, taps)
    if span.newline == "end":
        source = np.concatenate([source, np.full((1, taps), -1)])
        weight = np.concatenate([weight, np.zeros((1, taps))])
        crop = np.append(crop, crop[-1])
        position = np.concatenate([position, position[-1:] + [[0, 0, 1]]])
        newline = np.append(newline, True)
    if span.special:
        first = span.crop * _per_crop(span) + np.arange(span.special)
        source = np.concatenate([np.repeat(first[:, None], taps, 1), source])
        weight = np.concatenate([np.eye(1, taps).repeat(span.special, 0), weight])
        crop = np.concatenate([np.full(span.special, span.crop), crop])
        position = np.concatenate([np.full((span.special, 3), -1), position])
        newline = np.concatenate([np.zeros(span.special, bool), newline])
    return dict(
        source=source.astype(np.int32),
        weight=weight.astype(np.float32),
        crop=crop.astype(np.int32),
        position=position.astype(np.float32),
        newline=newline,
        span=np.full(len(source), index, np.int32),
        resampled=np.full(len(source), span.resampled),
    )


def _grid(span: Span, taps: int) -> tuple[np.ndarray, ...]:
    """source, weight [n,K], crop [n], position [n,3] and newline [n] of the grid and of the newlines after its rows."""
    top, left, height, width = span.kept
    y0, y1, y = bilinear(height, span.grid[0])
    x0, x1, x = bilinear(width, span.grid[1])
    closed = int(span.newline == "row")
    if closed:  # one more column, in the crop of the last one; the grid may have no other
        x0, x1, x = np.append(x0, max(width - 1, 0)), np.append(x1, max(width - 1, 0)), np.append(x, 0)
    corners = [(y0, x0), (y0, x1), (y1, x0), (y1, x1)][:taps]
    shares = [(1 - y, 1 - x), (1 - y, x), (y, 1 - x), (y, x)][:taps]
    source = np.stack([_feature(span, top + r[:, None], left + c[None]) for r, c in corners], -1)
    weight = np.stack([r[:, None] * c[None] for r, c in shares], -1)
    crop = _crop(span, top + np.where(y < 0.5, y0, y1)[:, None], left + np.where(x < 0.5, x0, x1)[None])
    frame = np.arange(span.frames)[:, None, None]
    source = source + frame[..., None] * _per_crop(span)
    place = np.meshgrid(frame, np.arange(span.grid[0]), np.arange(span.grid[1] + closed), indexing="ij")
    newline = (place[2] == span.grid[1]).ravel()
    source, weight = source.reshape(-1, taps), np.broadcast_to(weight, source.shape).reshape(-1, taps)
    return (
        np.where(newline[:, None], -1, source),
        np.where(newline[:, None], 0, weight),
        (crop + frame).ravel(),
        np.stack(place, -1).reshape(-1, 3),
        newline,
    )


def _per_crop(span: Span) -> int:
    return span.special + span.patches[0] * span.patches[1]


def _crop(span: Span, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return span.crop + row // span.patches[0] * span.tiles[1] + column // span.patches[1]


def _feature(span: Span, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Flat index of the feature at a place of the mosaic."""
    rows, columns = span.patches
    return _crop(span, row, column) * _per_crop(span) + span.special + row % rows * columns + column % columns
