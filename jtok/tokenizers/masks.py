"""Attention masks of packed sequences: bool [L,L], True where a query (row) attends to a key."""

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
    """Sequences of `lengths` do not attend to each other; padding up to `padded` is masked both ways.

    causal: a token attends to itself and earlier ones. causal_last: also to the first `prefixes[i]` of its sequence,
    so that the prefix attends to all of itself and nothing after it (FlexTok's encoder, arXiv:2502.13967).
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
