"""Prompts of different lengths and images as one batch of static shapes.

Rows are left-aligned: padding follows. A cache that stores positions per slot then needs no shift: the token of slot i
is the i-th of its row in every layer, rows that share a beginning share its slots, and decoding appends at slot L for
all rows, at position `next_position` of each, with padding slots never attended to. The price is one gather: the last
token of a row is at `length - 1`, not at L - 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from jtok.errors import UserError
from jtok.models.vlm.processing.cross_mask import cross_mask
from jtok.models.vlm.processing.layout import Layout, layout
from jtok.models.vlm.processing.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class Batch:
    """B prompts of up to L ids, with up to N visual tokens and X crops (or patches) each; zeros where padded.

    `source` counts the features of a row: all its crops one after the other, as the tower gives them for `pixels`
    without their padding. The last three fields are None for models that do not use them.
    """

    ids: Int[np.ndarray, "B L"]
    valid: Bool[np.ndarray, "B L"]
    positions: Int[np.ndarray, " ..."]  # [B,L], or [3,B,L] for multimodal RoPE
    length: Int[np.ndarray, " B"]
    next_position: Int[np.ndarray, " B"]
    visual: Int[np.ndarray, "B N"]  # slots of the visual tokens; -1 = padding, or not in the sequence (Mllama)
    tokens: Bool[np.ndarray, "B N"]  # which of the N are real
    image: Int[np.ndarray, "B N"]  # which image or video of the row; -1 = padding
    source: Int[np.ndarray, "B N K"]  # as in `Layout`, and -1 for padding
    weight: Float[np.ndarray, "B N K"]
    crop: Int[np.ndarray, "B N"]  # index within the row; -1 = padding
    position: Float[np.ndarray, "B N 3"]  # time, row, column on the span's grid
    newline: Bool[np.ndarray, "B N"]
    span: Int[np.ndarray, "B N"]  # index within the row; -1 = padding
    resampled: Bool[np.ndarray, "B N"]
    home: Int[np.ndarray, "B F"]  # which of the N a feature is (nearest to); -1 = cut away, or padding
    pixels: Float[np.ndarray, "B X ..."] | None  # None if no row has an image
    real: Bool[np.ndarray, "B X"] | None  # crops or patches that are not padding
    grids: tuple[tuple[tuple[int, int, int], ...], ...] = ()  # time, rows, columns per row and image (Qwen2.5-VL)
    aspects: Int[np.ndarray, "B I"] | None = None  # ids of arrangements of tiles; 0 = no image (Llama-3.2-Vision)
    cross: Bool[np.ndarray, "B L I T"] | None = None  # tiles that a token may attend to (Llama-3.2-Vision)


def pad_batch(prompts: Sequence[Prompt], pad: int, *, length: int = 0, tokens: int = 0, crops: int = 0) -> Batch:
    """One batch of prompts for one model.

    pad: the id that fills up. length, tokens, crops: the sizes L, N and X, so that one compiled program serves many
    batches; 0 = what the longest row needs. Raises UserError if there is no prompt, or one does not fit.
    """
    if not prompts:
        raise UserError("a batch needs at least one prompt.")
    longest = _slots("ids", max(len(p.ids) for p in prompts), length)
    rows = [_row(prompt) for prompt in prompts]
    homes = [row.pop("home") for row in rows]
    most = max(map(len, homes))
    slots = _slots("visual tokens", max(len(row["source"]) for row in rows), tokens)
    taps = max(row["source"].shape[1] for row in rows)
    arrays = {name: np.stack([_fill(row[name], slots, taps) for row in rows]) for name in rows[0]}
    pixels, real = _pixels(prompts, crops)
    lengths = np.asarray([len(p.ids) for p in prompts], np.int32)
    return Batch(
        ids=np.stack([np.pad(p.ids, (0, longest - len(p.ids)), constant_values=pad) for p in prompts]),
        valid=np.arange(longest) < lengths[:, None],
        positions=np.stack([_pad_last(p.positions, longest) for p in prompts], -2),
        length=lengths,
        next_position=np.asarray([p.next_position for p in prompts], np.int32),
        home=np.stack([np.pad(home, (0, most - len(home)), constant_values=-1) for home in homes]),
        pixels=pixels,
        real=real,
        grids=tuple(tuple(v.grid for v in p.visuals) for p in prompts) if _any(prompts, "grid") else (),
        **arrays,
        **(_tiles(prompts, longest) if _any(prompts, "aspect") else {}),
    )


def _any(prompts: Sequence[Prompt], field: str) -> bool:
    return any(getattr(visual, field) is not None for prompt in prompts for visual in prompt.visuals)


def _slots(what: str, needed: int, given: int) -> int:
    if given and needed > given:
        raise UserError(f"a prompt has {needed} {what} and the batch was given {given}: raise the limit.")
    return max(needed, given)


def _row(prompt: Prompt) -> dict[str, np.ndarray]:
    """Arrays over the visual tokens of one prompt, its images joined; `home` is over its features."""
    parts: list[dict[str, np.ndarray]] = []
    homes = [np.zeros(0, np.int32)]
    tokens = features = crops = spans = 0
    for index, (visual, offset) in enumerate(zip(prompt.visuals, prompt.offsets, strict=True)):
        one = layout(visual.spans)
        parts.append(_shift(one, features, crops, spans))
        in_sequence = visual.slots == len(one)
        slots = offset + np.arange(len(one)) if in_sequence else np.full(len(one), -1)
        parts[-1] |= dict(visual=slots.astype(np.int32), image=np.full(len(one), index, np.int32))
        home = np.where(one.home < 0, -1, one.home + tokens)
        homes.append(np.pad(home, (0, visual.features - len(home)), constant_values=-1))
        tokens += len(one)
        features += visual.features
        crops += visual.spans[0].frames if visual.grid else len(visual.pixels)
        spans += len(visual.spans)
    if not parts:
        parts = [_shift(Layout(*_empty()), 0, 0, 0) | dict(visual=np.zeros(0, np.int32), image=np.zeros(0, np.int32))]
    taps = max(part["source"].shape[1] for part in parts)
    rows = {name: np.concatenate([_fill(p[name], len(p["source"]), taps) for p in parts]) for name in parts[0]}
    return rows | {"home": np.concatenate(homes).astype(np.int32)}


def _shift(one: Layout, features: int, crops: int, spans: int) -> dict[str, np.ndarray]:
    return dict(
        tokens=np.ones(len(one), bool),
        source=np.where(one.source < 0, -1, one.source + features).astype(np.int32),
        weight=one.weight,
        crop=one.crop + np.int32(crops),
        position=one.position,
        newline=one.newline,
        span=one.span + np.int32(spans),
        resampled=one.resampled,
    )


def _empty() -> tuple[np.ndarray, ...]:
    whole, real = np.int32, np.float32
    shapes = (((0, 1), whole), ((0, 1), real), ((0,), whole), ((0, 3), real), ((0,), bool), ((0,), whole))
    return tuple(np.zeros(shape, kind) for shape, kind in (*shapes, ((0,), bool), ((0,), whole)))


def _fill(array: np.ndarray, length: int, taps: int) -> np.ndarray:
    """Padded to `length` tokens, and `taps` per token for source and weight: with -1, 0.0 or False by its kind."""
    fill = -1 if array.dtype == np.int32 else 0
    array = np.pad(array, [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1), constant_values=fill)
    if array.ndim == 2 and array.shape[1] in (1, 4):  # a position has three
        array = np.pad(array, [(0, 0), (0, taps - array.shape[1])], constant_values=fill)
    return array


def _pad_last(array: np.ndarray, length: int) -> np.ndarray:
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])])


def _pixels(prompts: Sequence[Prompt], crops: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    counts = [sum(len(v.pixels) for v in p.visuals) for p in prompts]
    slots = _slots("crops or patches", max(counts), crops)
    if not max(counts):
        return None, None
    shape = next(v.pixels.shape[1:] for p in prompts for v in p.visuals)
    pixels = np.zeros((len(prompts), slots, *shape), np.float32)
    real = np.zeros((len(prompts), slots), bool)
    for row, prompt in enumerate(prompts):
        at = 0
        for visual in prompt.visuals:
            pixels[row, at : at + len(visual.pixels)] = visual.pixels
            real[row, at : at + (visual.real or len(visual.pixels))] = True
            at += len(visual.pixels)
    return pixels, real


def _tiles(prompts: Sequence[Prompt], length: int) -> dict[str, np.ndarray]:
    """Arrangement ids [B,I] and cross-attention mask [B,L,I,T]."""
    most = max(len(p.visuals) for p in prompts)
    tiles = next(len(v.pixels) for p in prompts for v in p.visuals)
    aspects = np.zeros((len(prompts), most), np.int32)
    cross = np.zeros((len(prompts), length, most, tiles), bool)
    for row, prompt in enumerate(prompts):
        aspects[row, : len(prompt.visuals)] = [visual.aspect for visual in prompt.visuals]
        if prompt.visuals:
            mask = cross_mask(prompt.offsets, prompt.visuals, tiles, len(prompt.ids))
            cross[row, : len(prompt.ids), : len(prompt.visuals)] = mask
    return dict(aspects=aspects, cross=cross)
