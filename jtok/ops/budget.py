"""How many tokens to keep for which image: plain numbers, known before anything is traced. `schedule` has stages."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError


def share_of(patches: int, share: float) -> int:
    """A share of some patches, truncated as the reference codes of in-LLM pruners do, but at least one."""
    return max(1, int(patches * share + 1e-9))


def share_of_each(real: Int[Array, " B"], patches: int, share: float) -> Int[Array, " B"]:
    """The same for rows with `real` patches of at most `patches`: looked up, as float32 would truncate otherwise."""
    table = [0, *(share_of(n, share) for n in range(1, patches + 1))]
    return jnp.asarray(table, jnp.int32)[real]


def coarse_grid(grid: tuple[int, int], keep: float) -> tuple[int, int]:
    """The coarser (rows, columns) whose number of cells is nearest to keep * patches, of similar aspect ratio."""
    rows, columns = grid
    wanted = keep * rows * columns
    near = [
        (r, c) for r in range(1, rows + 1) for c in range(1, columns + 1) if abs(r / rows - c / columns) < 1.5 / rows
    ]
    return min(near, key=lambda g: (abs(g[0] * g[1] - wanted), abs(g[0] / rows - g[1] / columns)))


def nearest_count(name: str, possible: Sequence[int], patches: int, keep: float, tokens: int | None = None) -> int:
    """Tokens of a method limited to certain counts: exactly `tokens`, or the count nearest to keep * patches.

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
