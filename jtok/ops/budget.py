"""How many tokens to keep, at which site, for which image. Plain numbers, known before anything is traced."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError


def stage_blocks(depth: int, stages: int = 3) -> tuple[int, ...]:
    """Blocks at which a staged method reduces: a quarter, half and three quarters of the depth (3, 6, 9 of 12)."""
    return tuple(sorted({max(1, depth * (s + 1) // (stages + 1)) for s in range(stages)}))


def stage_counts(patches: int, keep: float, stages: int, rates: Sequence[float] | None = None) -> tuple[int, ...]:
    """Patches kept after each stage, truncated as the reference code does: int(rate_i * patches).

    Without `rates` (shares of the initial patches) they fall geometrically to `keep` at the last stage.
    """
    if rates is None:
        rates = [keep ** ((s + 1) / stages) for s in range(stages)]
    if len(rates) != stages:
        raise UserError(f"{len(rates)} keep rates were given for {stages} stages; give one rate a stage.")
    if any(not 0 < r <= 1 for r in rates):
        raise UserError(f"the keep rates are {tuple(rates)}; each must be above 0 and at most 1.")
    # the small number undoes binary rounding of exact products such as 0.1 ** (3 / 3) * 640
    return tuple(max(1, int(patches * r + 1e-9)) for r in rates)


def share_of(patches: int, share: float) -> int:
    """A share of some patches, truncated as the reference codes of in-LLM pruners do, but at least one."""
    return max(1, int(patches * share + 1e-9))


def share_of_each(real: Int[Array, " B"], patches: int, share: float) -> Int[Array, " B"]:
    """The same for rows with `real` patches of at most `patches`: looked up, as float32 would truncate otherwise."""
    table = [0, *(share_of(n, share) for n in range(1, patches + 1))]
    return jnp.asarray(table, jnp.int32)[real]


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


def constant_removal(patches: int, keep: float, blocks: int) -> tuple[int, ...]:
    """Tokens to remove in each of `blocks` blocks so that round(keep * patches) are left, spread evenly."""
    total = patches - max(1, round(keep * patches))
    return tuple(total * (b + 1) // blocks - total * b // blocks for b in range(blocks))


def linear_schedule(depth: int, r: int | tuple[int, float] | Sequence[int]) -> tuple[int, ...]:
    """ToMe's mini-language (arXiv:2210.09461): r a block, (r, inflect) a ramp, or a list padded with zeros.

    inflect -1 falls from 2r to 0, +1 rises; values are truncated towards zero.
    """
    if isinstance(r, (list, tuple)) and not (len(r) == 2 and isinstance(r[1], float)):
        return tuple(r) + (0,) * (depth - len(r))
    r, inflect = r if isinstance(r, (list, tuple)) else (r, 0.0)
    low = int(r * (1.0 - inflect))
    step = 0.0 if depth == 1 else (2 * r - low - low) / (depth - 1)
    return tuple(int(low + step * i) for i in range(depth))


def coarse_grid(grid: tuple[int, int], keep: float) -> tuple[int, int]:
    """The coarser (rows, columns) whose number of cells is nearest to keep * patches, of like aspect."""
    rows, columns = grid
    wanted = keep * rows * columns
    near = [
        (r, c) for r in range(1, rows + 1) for c in range(1, columns + 1) if abs(r / rows - c / columns) < 1.5 / rows
    ]
    return min(near, key=lambda g: (abs(g[0] * g[1] - wanted), abs(g[0] / rows - g[1] / columns)))


def nearest_count(name: str, possible: Sequence[int], patches: int, keep: float, tokens: int | None = None) -> int:
    """Tokens of a method that can only make so many: exactly `tokens`, or what is nearest to keep * patches.

    Raises UserError, naming what is possible, for other `tokens`.
    """
    if tokens is None:
        return min(possible, key=lambda count: abs(count - keep * patches))
    if tokens not in possible:
        raise UserError(f"{name} cannot make {tokens} tokens of {patches}: ask for {', '.join(map(str, possible))}.")
    return tokens


def visual_tokens(patches: int, keep: float, tokens: int | None = None) -> int:
    """Visual tokens of a crop that a language model gets: `tokens`, else round(keep * patches), at least one.

    Raises UserError for more tokens than there are patches.
    """
    if tokens is None:
        return max(1, round(keep * patches))
    if not 1 <= tokens <= patches:
        raise UserError(f"{tokens} tokens are asked for; there are {patches} patches: ask for 1 to that many.")
    return tokens


def split_over_segments(
    weight: Float[Array, "B S"],
    total: int | Int[Array, "B S"],
    cap: int,
    together: Bool[Array, "B S S"] | None = None,
) -> Int[Array, "B S"]:
    """Splits `total` tokens over S crops or frames in proportion to `weight`, truncated, at most `cap` each.

    together: which segments share a total (those of one image), where a row has several; then `total` is given for
    every segment.
    """
    if together is None:
        whole = weight.sum(-1, keepdims=True)
    else:
        whole = jnp.where(together, weight[:, None], 0).sum(-1)
    return jnp.minimum((weight / jnp.maximum(whole, 1e-12) * total).astype(jnp.int32), cap)
