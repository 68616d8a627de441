"""Attention that hides some keys from some queries, by tags that both may carry.

The kernel masks keys for all queries alike. Here a query and a key that share a tag are hidden from each other: tags
are channels beside those of the heads, whose product moves a score so far down that its probability is exactly zero.
No array of queries times keys is made. A query all of whose keys are hidden attends to them as if none were.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok import kernels
from jtok.kernels import AttentionOutput

#: A shared tag costs its square before scaling: thousands, where scores of normalised queries are tens. Exact in
#: bfloat16.
_STRENGTH = 256.0


def tagged_attention(
    q: Float[Array, "B N H D"],
    k: Float[Array, "B M Hk D"],
    v: Float[Array, "B M Hk D"],
    q_tags: Bool[Array, "B N G"],
    k_tags: Bool[Array, "B M G"],
    **options: Any,
) -> AttentionOutput:
    """`kernels.attention_scores` (options as there, but `scale`) with queries hidden from keys that share a tag."""
    width = q.shape[-1]
    q, k = _with_tags(q, q_tags, _STRENGTH), _with_tags(k, k_tags, -_STRENGTH)
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, q_tags.shape[-1])])
    result = kernels.attention_scores(q, k, v, scale=width**-0.5, **options)
    return result._replace(out=result.out[..., :width])


def _with_tags(x: Array, tags: Array, strength: float) -> Array:
    channels = (tags * strength).astype(x.dtype)[:, :, None]
    return jnp.concatenate([x, jnp.broadcast_to(channels, (*x.shape[:3], tags.shape[-1]))], -1)
