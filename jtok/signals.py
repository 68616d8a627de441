"""What a model can tell a reducer at a site. A reducer declares what it reads; the model computes that and nothing else.

Attention signals are softmax probabilities in float32, taken from the most recent attention layer before the site
(the same block's for `after_attention` and `output`, the previous block's for `input`). None of them needs an N x N
matrix in memory: the attention kernel returns rows or column sums.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Float

#: Names that a reducer may put into `reads`, with what each holds.
KNOWN = {
    "class_attention": "attention of the class token to every token, per head [B,H,N]",
    "attention_received": "attention that each token receives, summed over queries, mean over heads [B,N]",
    "queries": "queries of the attention layer, unscaled [B,N,H,Dh]",
    "keys": "keys of the attention layer [B,N,H,Dh]",
    "values": "values of the attention layer [B,N,H,Dh]",
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Signals:
    """Signals at one site; a field is None unless some reducer at the site declared it in `reads`."""

    class_attention: Float[Array, "B H N"] | None = None
    attention_received: Float[Array, "B N"] | None = None
    queries: Float[Array, "B N H Dh"] | None = None
    keys: Float[Array, "B N H Dh"] | None = None
    values: Float[Array, "B N H Dh"] | None = None
    key: Array | None = None  # one PRNG key an image [B], so that rows stay independent of their batch
    train: bool = dataclasses.field(default=False, metadata={"static": True})

    def replace(self, **changes: Any) -> Signals:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def per_token(self) -> dict[str, Array]:
        """The declared signals with the token axis second, [B,N,...]: the form that follows takes and merges."""
        rows = {name: getattr(self, name) for name in KNOWN if getattr(self, name) is not None}
        if "class_attention" in rows:
            rows["class_attention"] = rows["class_attention"].swapaxes(1, 2)
        return rows

    def with_per_token(self, rows: dict[str, Array]) -> Signals:
        """Inverse of `per_token`, for tokens that were taken, merged or cut into windows."""
        rows = dict(rows)
        if "class_attention" in rows:
            rows["class_attention"] = rows["class_attention"].swapaxes(1, 2)
        return self.replace(**rows)
