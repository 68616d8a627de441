"""What a model can tell a reducer at a site. A reducer declares what it reads; the model computes nothing else.

Attention signals are softmax probabilities in float32, taken from the most recent attention layer before the site
(the same block's for `after_attention` and `output`, the previous block's for `input`). None of them needs an N x N
matrix in memory: the attention kernel returns rows or column sums. At a site in a language model the tokens are the
visual ones: probabilities are over the whole sequence, of which the columns of the visual tokens are given.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

#: Names that a reducer may put into `reads`, with what each holds.
KNOWN = {
    "class_attention": "attention of the class token to every token, per head [B,H,N]",
    "attention_received": "attention that each token receives, summed over queries, mean over heads [B,N]",
    "queries": "queries of the attention layer, unscaled [B,N,H,Dh]",
    "keys": "keys of the attention layer [B,N,H,Dh]",
    "values": "values of the attention layer [B,N,H,Dh]",
    "last_token_attention": "attention of the prompt's last token to every token, per head [B,H,N]",
    "next_last_token_attention": "the same, as the layer behind the site would compute it [B,H,N]",
    "text_attention": "attention of the question's T tokens to every token, per head [B,H,T,N]",
    "text_features": "features of the question's tokens at the site [B,T,D]",
    "text_keys": "keys of the question's tokens [B,T,H,Dh]",
    "text_valid": "which of the T tokens of the question are real [B,T]",
    "rotary_position": "position of every token for RoPE, one number or (time, row, column) [B,N,P]",
    "text_position": "the same of the question's tokens [B,T,P]",
    "rotary_logits": "logits of the question's T tokens to every token, if all queries and keys were ones [B,T,N]",
    "normed": "features after the decoder's final norm [B,N,D]",
    "text_normed": "features of the question's tokens after the decoder's final norm [B,T,D]",
    "text_embedding": "embedding of the question by the text tower of a contrastive model [B,E]",
    "crop_image": "image of the prompt that each token's crop belongs to, -1 = none; behind the projector [B,N]",
}

#: Axis of the tokens in each signal, where it is not 1; None: the signal has no axis of (visual) tokens.
TOKEN_AXIS: dict[str, int | None] = {
    "class_attention": 2,
    "last_token_attention": 2,
    "next_last_token_attention": 2,
    "text_attention": 3,
    "text_features": None,
    "text_keys": None,
    "text_valid": None,
    "rotary_logits": 2,
    "text_position": None,
    "text_normed": None,
    "text_embedding": None,
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
    last_token_attention: Float[Array, "B H N"] | None = None
    next_last_token_attention: Float[Array, "B H N"] | None = None
    text_attention: Float[Array, "B H T N"] | None = None
    text_features: Float[Array, "B T D"] | None = None
    text_keys: Float[Array, "B T H Dh"] | None = None
    text_valid: Bool[Array, "B T"] | None = None
    rotary_position: Int[Array, "B N P"] | None = None
    text_position: Int[Array, "B T P"] | None = None
    rotary_logits: Float[Array, "B T N"] | None = None
    normed: Float[Array, "B N D"] | None = None
    text_normed: Float[Array, "B T D"] | None = None
    text_embedding: Float[Array, "B E"] | None = None
    crop_image: Int[Array, "B N"] | None = None
    key: Array | None = None  # one PRNG key an image [B], so that rows stay independent of their batch
    train: bool = dataclasses.field(default=False, metadata={"static": True})

    def replace(self, **changes: Any) -> Signals:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def per_token(self) -> dict[str, Array]:
        """The declared signals with the token axis second, [B,N,...]: the form that follows takes and merges."""
        axes = {name: TOKEN_AXIS.get(name, 1) for name in KNOWN if getattr(self, name) is not None}
        return {name: jnp.moveaxis(getattr(self, name), axis, 1) for name, axis in axes.items() if axis is not None}

    def of_text(self) -> dict[str, Array]:
        """The declared signals without an axis of visual tokens."""
        names = [name for name, axis in TOKEN_AXIS.items() if axis is None and getattr(self, name) is not None]
        return {name: getattr(self, name) for name in names}

    def with_per_token(self, rows: dict[str, Array]) -> Signals:
        """Inverse of `per_token`, for tokens that were taken, merged or cut into windows."""
        return self.replace(**{name: jnp.moveaxis(row, 1, TOKEN_AXIS.get(name, 1)) for name, row in rows.items()})
