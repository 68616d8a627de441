"""Who sees whom, for sequences packed one after the other: bool masks [L,L], True where a query (row) sees a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jtok.errors import UserError


def packed_mask(
    lengths: Sequence[int],
    kind: Literal["full", "causal", "causal_last"] = "full",
    *,
    prefixes: Sequence[int] = (),
    padded: int | None = None,
) -> Bool[Array, "L L"]:
    """Sequences of `lengths` see nothing of each other; padding up to `padded` sees and shows nothing.

    causal: a token sees itself and those before. causal_last: and the first `prefixes[i]` of its sequence, so that the
    prefix sees all of itself and nothing behind (FlexTok's encoder, arXiv:2502.13967).
    """
    total = padded or sum(lengths)
    if total < sum(lengths) or (kind == "causal_last" and len(prefixes) != len(lengths)):
        raise UserError(f"lengths {tuple(lengths)} do not fit padded={padded} and prefixes={tuple(prefixes)}.")
    mask, start = np.zeros((total, total), bool), 0
    for i, length in enumerate(lengths):
        one = np.ones((length, length), bool) if kind == "full" else np.tril(np.ones((length, length), bool))
        if kind == "causal_last":
            one[:, : prefixes[i]] = True
        mask[start : start + length, start : start + length] = one
        start += length
    return jnp.asarray(mask)
