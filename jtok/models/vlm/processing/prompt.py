"""A prompt: ids with every visual token in its place, and the position of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jtok.errors import UserError
from jtok.models.vlm.processing.layout import VisualInput
from jtok.models.vlm.processing.settings import ImageSettings
from jtok.models.vlm.processing.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One sequence of L ids. `visuals[i]` takes the slots from `offsets[i]` to `offsets[i] + visuals[i].slots`.

    `positions` is [L], or [3,L] (time, row, column) for multimodal RoPE; the first token of the answer is at
    `next_position` on all axes.
    """

    ids: Int[np.ndarray, " L"]
    visuals: tuple[VisualInput, ...]
    offsets: tuple[int, ...]
    positions: Int[np.ndarray, " ..."]

    @property
    def next_position(self) -> int:
        return int(self.positions.max()) + 1 if self.positions.size else 0


def expand(
    ids: Sequence[int], tokenizer: Tokenizer, images: Sequence[VisualInput], videos: Sequence[VisualInput] = ()
) -> tuple[np.ndarray, tuple[VisualInput, ...], tuple[int, ...]]:
    """(ids, visuals, offsets): each placeholder repeated as often as its image or video has slots, in order.

    Raises UserError unless there is one placeholder for each image and each video.
    """
    for kind, index, given in (("image", tokenizer.image, images), ("video", tokenizer.video, videos)):
        _check_count(kind, ids, index, given, tokenizer)
    queues = {tokenizer.image: iter(images), tokenizer.video: iter(videos)}
    queues.pop(None, None)
    out: list[int] = []
    visuals, offsets = [], []
    for index in ids:
        if index not in queues:
            out.append(index)
            continue
        visual = next(queues[index])
        visuals.append(visual)
        offsets.append(len(out))
        out += [index] * visual.slots
    return np.asarray(out, np.int32), tuple(visuals), tuple(offsets)


def sequential_positions(
    length: int, visuals: Sequence[VisualInput], offsets: Sequence[int], settings: ImageSettings
) -> Int[np.ndarray, " L"]:
    """Positions that count ids from 0, visual tokens among them."""
    del visuals, offsets, settings
    return np.arange(length, dtype=np.int32)


def mrope_positions(
    length: int, visuals: Sequence[VisualInput], offsets: Sequence[int], ticks: int
) -> Int[np.ndarray, "3 L"]:
    """Multimodal RoPE positions (time, row, column) of a sequence (Qwen2-VL, arXiv 2409.12191).

    Text advances all three together. An image's tokens take their row and column, offset by the image's first position;
    later text continues after the longer side of that grid. Steps of a video are `ticks * seconds` apart in time, cut
    to whole numbers; an image has one.
    """
    positions = np.zeros((3, length), np.int32)
    slot = here = 0
    for visual, offset in zip(visuals, offsets, strict=True):
        positions[:, slot:offset] = here + np.arange(offset - slot)
        here += offset - slot
        span = visual.spans[0]
        interval = np.float32(ticks * visual.seconds if visual.kind == "video" else 1)
        time = (np.arange(span.frames, dtype=np.float32) * interval).astype(np.int32)  # cut as in float32
        grid = np.meshgrid(time, np.arange(span.grid[0]), np.arange(span.grid[1]), indexing="ij")
        slot = offset + visual.slots
        positions[:, offset:slot] = here + np.stack(grid).reshape(3, -1)
        here += max(span.grid)
    positions[:, slot:] = here + np.arange(length - slot)
    return positions


def _check_count(
    kind: str, ids: Sequence[int], index: int | None, given: Sequence[VisualInput], tokenizer: Tokenizer
) -> None:
    if index is None:
        if given:
            raise UserError(f"this model takes no {kind}s: config.json names no {kind} token.")
        return
    placeholders = list(ids).count(index)
    if placeholders != len(given):
        raise UserError(
            f"the prompt has {placeholders} {kind} placeholders ('{tokenizer.token(index)}') for {len(given)} {kind}s: "
            "there must be one for each."
        )
