"""Where a staged method reduces and how many patches it leaves there: one language for all of them.

Every staged method takes the options of `Asked` beside `keep`, and hands them to `make` with what its authors chose.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

from jtok.errors import UserError

#: One number for every block, one a block (padded with zeros), or (mean, "falling" or "rising").
Removal = int | Sequence[int] | tuple[int, Literal["falling", "rising"]]

#: How counts fall to the last: by equal shares, by equal numbers, or all at the first block.
Fall = Literal["geometric", "even", "flat"]


class Asked(TypedDict, total=False):
    """What may be said of a schedule, beside `keep` (share of the patches left after the last block).

    At most one of `tokens`, `rates` and `r`, which replace `keep`, and at most one of `blocks` and `stages`.
    """

    tokens: int | None  # patches left after the last block
    rates: Sequence[float] | None  # share of the initial patches left after each block
    r: Removal | None  # patches removed in each block
    blocks: Sequence[int] | None  # where to reduce: blocks of the tower, or layers of the language model
    stages: int | None  # reduce in so many blocks, spread evenly over the depth


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Blocks in which patches go, rising; patches left after each, and what share of the initial ones that is.

    shares: as they were asked for, before they were rounded to counts.
    """

    blocks: tuple[int, ...]
    counts: tuple[int, ...]
    shares: tuple[float, ...]

    def removals(self, patches: int) -> tuple[int, ...]:
        """How many of `patches` go in each block."""
        return tuple(a - b for a, b in zip((patches, *self.counts), self.counts, strict=False))


def truncated(share: float) -> int:
    """Rounds down; the small number undoes binary rounding of exact products such as 0.1 ** (3 / 3) * 640."""
    return int(share + 1e-9)


def make(
    patches: int,
    depth: int,
    keep: float,
    asked: Asked,
    blocks: Sequence[int] | None = None,
    *,
    first: int = 1,
    fall: Fall = "geometric",
    whole: Callable[[float], int] = truncated,
    halves: bool = False,
) -> Schedule:
    """The schedule of a method for `patches` patches in a model of `depth` blocks.

    blocks: where its authors reduce (default: at a quarter, half and three quarters of the depth). first: the first
    block in which it can. fall: of the counts between the first block and the last. whole: how its authors round
    shares of patches. halves: a block removes at most half of its patches; with `r`, later ones what they can.

    Raises UserError for an amount said twice, amounts that no patch count meets, and blocks that the model lacks.
    """
    unknown = [name for name in asked if name not in Asked.__annotations__]
    if unknown:
        raise UserError(f"a schedule has no option '{unknown[0]}'; it takes {', '.join(Asked.__annotations__)}.")
    amounts = {name: asked[name] for name in ("tokens", "rates", "r") if asked.get(name) is not None}
    if len(amounts) > 1:
        both = " and ".join(f"{name}={value}" for name, value in amounts.items())
        raise UserError(f"the schedule is asked for {both}, which say the same thing: give one of them.")
    places = _places(depth, asked, blocks, first)
    if "r" in amounts:
        return _removing(places, patches, removals(amounts["r"], len(places)), halves)
    if "rates" in amounts:
        shares = _rates(amounts["rates"], len(places))
        return _halving(Schedule(places, tuple(max(1, whole(patches * s)) for s in shares), shares), patches, halves)
    share = _share(patches, keep, amounts.get("tokens"))
    last = amounts.get("tokens", max(1, whole(patches * share)))
    if fall == "even":
        return _evenly(places, patches, last, halves)
    n = len(places)
    shares = tuple(share if fall == "flat" else share ** ((s + 1) / n) for s in range(n))
    counts = (*(max(last, whole(patches * s)) for s in shares[:-1]), last)
    return _halving(Schedule(places, counts, shares), patches, halves)


def spread_blocks(depth: int, stages: int = 3) -> tuple[int, ...]:
    """Blocks spread evenly over the depth: for three stages a quarter, half and three quarters (3, 6, 9 of 12)."""
    return tuple(sorted({max(1, depth * (s + 1) // (stages + 1)) for s in range(stages)}))


def blocks_at(blocks: Sequence[int], published: int, depth: int) -> tuple[int, ...]:
    """Block numbers of a paper's model of `published` blocks, moved to one of `depth`: rising, from 1 to depth - 1."""
    placed: list[int] = []
    for block in blocks:
        at = max(round(block * depth / published), 1, placed[-1] + 1 if placed else 1)
        if at < depth:
            placed.append(at)
    return tuple(placed)


def ceil_counts(patches: int, rate: float, stages: int, extra: int = 0) -> tuple[int, ...]:
    """Patches kept after each stage when each keeps ceil(rate * current count), `extra` tokens joining every time."""
    counts = []
    for _ in range(stages):
        kept = math.ceil(rate * patches)
        counts.append(kept)
        patches = kept + (extra if kept < patches else 0)
    return tuple(counts)


def ramp(r: int, inflect: float, blocks: int) -> tuple[int, ...]:
    """ToMe's ramps (arXiv:2210.09461): from r * (1 - inflect) to r * (1 + inflect), truncated towards zero.

    Inflect -1 falls from 2r to 0, 0 is r in every block, and 1 rises.
    """
    low = int(r * (1.0 - inflect))
    step = 0.0 if blocks == 1 else (2 * r - low - low) / (blocks - 1)
    return tuple(int(low + step * i) for i in range(blocks))


def removals(r: Removal, blocks: int) -> tuple[int, ...]:
    """What `r` asks each of `blocks` blocks to remove: `r`, one number a block, or a ramp whose mean is about r.

    (r, "falling") falls from 2r to 0 and (r, "rising") rises to 2r; (r, -1) is the falling one too. Raises UserError
    for other words, numbers that are negative or not whole, more numbers than blocks, and (r, 1), which may be read
    in two ways.
    """
    if _whole(r):
        numbers: tuple[Any, ...] = (r,) * blocks
    elif isinstance(r, (list, tuple)):
        numbers = tuple(r)
    else:
        raise UserError(f"r = {r!r}; give a whole number, one number a block, or (number, 'falling' or 'rising').")
    if len(numbers) == 2 and _whole(numbers[0]) and not isinstance(r, int):
        mean, way = numbers
        if way in ("falling", "rising") or way == -1:
            if mean < 0:
                raise UserError(f"r = {r}: a ramp needs a number that is not negative.")
            return ramp(mean, 1.0 if way == "rising" else -1.0, blocks)
        if way == 1:
            raise UserError(
                f"r = {r} may be a ramp or two blocks: write ({mean}, 'rising') for the ramp and ({mean}, 1, 0) for "
                "the blocks."
            )
    if not all(_whole(number) and number >= 0 for number in numbers):
        raise UserError(f"r = {r}; give whole numbers from 0, one a block, or (number, 'falling' or 'rising').")
    if any(numbers[blocks:]):
        raise UserError(f"r has {len(numbers)} numbers for {blocks} blocks; give at most one a block.")
    return (numbers + (0,) * blocks)[:blocks]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _places(depth: int, asked: Asked, default: Sequence[int] | None, first: int) -> tuple[int, ...]:
    blocks, stages = asked.get("blocks"), asked.get("stages")
    if blocks is not None and stages is not None:
        raise UserError(
            f"blocks={tuple(blocks)} say where to reduce, so that stages={stages} is ignored: leave it out."
        )
    if blocks is not None:
        listed = tuple(blocks) if isinstance(blocks, (list, tuple, range)) else ()
        inside = all(_whole(b) and first <= b < depth for b in listed)
        if not listed or not inside or list(listed) != sorted(set(listed)):
            raise UserError(f"the blocks are {blocks}; give a list of rising numbers from {first} to {depth - 1}.")
        return listed
    if stages is not None:
        places = spread_blocks(depth, stages) if _whole(stages) and 0 < stages < depth else ()
        if not places or len(places) != stages:
            raise UserError(f"there are {stages} stages for {depth} blocks; give a number from 1 to {depth - 1}.")
        return places
    places = spread_blocks(depth) if default is None else tuple(default)
    if not places:
        raise UserError(f"a model of {depth} blocks is too small to reduce within it: choose a deeper one.")
    return places


def _share(patches: int, keep: float, tokens: int | None) -> float:
    if tokens is not None:
        if not _whole(tokens) or not 1 <= tokens <= patches:
            raise UserError(f"{tokens} tokens are asked for; there are {patches} patches: ask for 1 to that many.")
        return tokens / patches
    if not 0 < keep <= 1:
        raise UserError(f"the keep ratio is {keep}; it must be above 0 and at most 1.")
    return keep


def _rates(rates: Sequence[float], blocks: int) -> tuple[float, ...]:
    rates = tuple(rates) if isinstance(rates, (list, tuple)) else (rates,)
    if len(rates) != blocks:
        raise UserError(f"rates has {len(rates)} numbers for {blocks} blocks; give one a block.")
    if not all(isinstance(rate, (int, float)) and 0 < rate <= 1 for rate in rates):
        raise UserError(f"the rates are {rates}; each must be above 0 and at most 1.")
    if list(rates) != sorted(rates, reverse=True):
        raise UserError(f"the rates are {rates}; they are shares of the initial patches and must not rise.")
    return rates


def _evenly(blocks: tuple[int, ...], patches: int, last: int, halves: bool) -> Schedule:
    """The same number in every block, but for rounding; blocks that remove nothing are left out."""
    n, total = len(blocks), patches - last
    counts = [patches - total * (b + 1) // n for b in range(n)]
    if halves:  # where the last blocks would have to remove more than half, the earlier ones remove more
        counts = [min(count, last * 2 ** (n - 1 - b)) for b, count in enumerate(counts)]
    return _halving(_changing(blocks, patches, counts), patches, halves)


def _removing(blocks: tuple[int, ...], patches: int, removed: tuple[int, ...], halves: bool) -> Schedule:
    """So many in each block; with `halves` later blocks remove what they can."""
    start = next((number for number in removed if number), 0)
    most = patches // 2 if halves else patches - 1
    if start > most:
        raise UserError(f"r = {start} is more than one block can remove: at most {most} of {patches} patches.")
    if not halves and sum(removed) >= patches:
        raise UserError(f"r removes {sum(removed)} of {patches} patches in all and leaves none: give less.")
    counts, now = [], patches
    for number in removed:
        now -= min(number, now // 2) if halves else number
        counts.append(now)
    return _changing(blocks, patches, counts)


def _changing(blocks: tuple[int, ...], patches: int, counts: Sequence[int]) -> Schedule:
    before = (patches, *counts)
    kept = [(block, count) for block, count, was in zip(blocks, counts, before, strict=False) if count < was]
    left = tuple(count for _, count in kept)
    return Schedule(tuple(block for block, _ in kept), left, tuple(count / patches for count in left))


def _halving(made: Schedule, patches: int, halves: bool) -> Schedule:
    if halves:
        for was, count in zip((patches, *made.counts), made.counts, strict=False):
            if was - count > was // 2:
                raise UserError(
                    f"a block cannot go from {was} patches to {count}: at most half of them merge, so give more blocks."
                )
    return made
