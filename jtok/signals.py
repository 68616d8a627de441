"""What a model can give a reducer at a site. Reducers declare what they read; the model computes nothing else.

Attention signals are softmax probabilities in float32, taken from the most recent attention layer before the site
(the same layer's for `after_attention` and `output`, the previous layer's for `input`). None of them needs an N x N
matrix in memory: the attention kernel returns rows or column sums. At a site in a language model the tokens are the
visual ones: probabilities are over the whole sequence, restricted to the columns of the visual tokens.

A signal is declared once, below. Adding one touches this table and the function that computes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jtok.errors import UserError

#: What a model must have for a signal to exist.
Need = Literal["class token", "text", "question embedding", "crops"]


@dataclasses.dataclass(frozen=True)
class Signal:
    """One quantity that a model can provide.

    shape: B images, N tokens, H heads, T tokens of the question, D features, Dh features per head, P coordinates, E
    features of a question's embedding. made: by the `attention` layer before the site, `at the site` itself, or
    `outside` of the model. kind: what the numbers are.
    """

    name: str
    shape: str
    holds: str
    made: Literal["attention", "at the site", "outside"]
    kind: Literal["probabilities", "features", "positions", "logits", "mask", "index"]
    needs: tuple[Need, ...] = ()

    @property
    def axis(self) -> int | None:
        """The axis of the (visual) tokens; None if there is none."""
        dims = self.shape.split()
        return dims.index("N") if "N" in dims else None


_TEXT: tuple[Need, ...] = ("text",)

SIGNALS: dict[str, Signal] = {
    signal.name: signal
    for signal in (
        Signal("class_attention", "B H N", "attention of the class token to every token, per head",
               "attention", "probabilities", ("class token",)),
        Signal("attention_received", "B N", "attention that each token receives, summed over queries, mean over heads",
               "attention", "probabilities"),
        Signal("queries", "B N H Dh", "queries of the attention layer, unscaled", "attention", "features"),
        Signal("keys", "B N H Dh", "keys of the attention layer", "attention", "features"),
        Signal("values", "B N H Dh", "values of the attention layer", "attention", "features"),
        Signal("last_token_attention", "B H N", "attention of the prompt's last token to every token, per head",
               "attention", "probabilities", _TEXT),
        Signal("text_attention", "B H T N", "attention of the question's T tokens to every token, per head",
               "attention", "probabilities", _TEXT),
        Signal("text_keys", "B T H Dh", "keys of the question's tokens", "attention", "features", _TEXT),
        Signal("peak_attention", "B N", "attention that each token receives from visual tokens, maximum over the "
               "heads of each, mean over them", "attention", "probabilities", _TEXT),
        Signal("peak_text_attention", "B N", "attention that each token receives from the question's tokens, "
               "maximum over the heads of each, summed over them", "attention", "probabilities", _TEXT),
        Signal("next_last_token_attention", "B H N", "attention of the prompt's last token, as the layer after the "
               "site would compute it", "at the site", "probabilities", _TEXT),
        Signal("text_features", "B T D", "features of the question's tokens", "at the site", "features", _TEXT),
        Signal("text_valid", "B T", "which of the T tokens of the question are real", "at the site", "mask", _TEXT),
        Signal("rotary_position", "B N P", "position of every token for RoPE, one number or (time, row, column)",
               "at the site", "positions", _TEXT),
        Signal("text_position", "B T P", "position of the question's tokens", "at the site", "positions", _TEXT),
        Signal("rotary_logits", "B T N", "logits of the question's tokens to every token if all queries and keys were "
               "ones", "at the site", "logits", _TEXT),
        Signal("normed", "B N D", "features after the decoder's final norm", "at the site", "features", _TEXT),
        Signal("text_normed", "B T D", "features of the question's tokens after the decoder's final norm",
               "at the site", "features", _TEXT),
        Signal("text_embedding", "B E", "embedding of the question from the text tower of a contrastive model",
               "outside", "features", ("question embedding",)),
        Signal("crop_image", "B N", "image of the prompt that each token's crop belongs to, -1 = none; after the "
               "projector", "outside", "index", ("crops",)),
    )
}  # fmt: skip


def made_by_attention(reads: Iterable[str]) -> tuple[str, ...]:
    """Those of `reads` that an attention layer records, sorted."""
    return tuple(sorted(name for name in set(reads) if SIGNALS[name].made == "attention"))


@jax.tree_util.register_pytree_node_class
class Signals:
    """Signals at one site, as attributes: `s.class_attention`. One that no reducer at the site declared is None.

    key: one PRNG key per image [B], so that rows do not depend on their batch. train: whether the model is in
    training. Raises UserError for a signal that is not declared in `SIGNALS`.
    """

    def __init__(self, *, key: Array | None = None, train: bool = False, **given: Array | None):
        unknown = given.keys() - SIGNALS.keys()
        if unknown:
            raise UserError(f"there is no signal '{min(unknown)}'; known signals are {', '.join(SIGNALS)}.")
        self.key, self.train = key, train
        self._given = {name: value for name, value in given.items() if value is not None}

    def __getattr__(self, name: str) -> Array | None:
        if name not in SIGNALS:
            raise AttributeError(f"there is no signal '{name}'; known signals are {', '.join(SIGNALS)}.")
        return self._given.get(name)

    def tree_flatten(self):
        """The signals and the key, for jax."""
        names = tuple(sorted(self._given))
        return (*(self._given[name] for name in names), self.key), (names, self.train)

    @classmethod
    def tree_unflatten(cls, static, leaves) -> Signals:
        """Inverse of `tree_flatten`."""
        names, train = static
        made = object.__new__(cls)
        made._given, made.key, made.train = dict(zip(names, leaves, strict=False)), leaves[-1], train
        return made

    def __repr__(self) -> str:
        return f"Signals({', '.join(self._given) or 'none'})"

    def replace(self, **changes: Any) -> Signals:
        """A copy with some of them changed (None removes one)."""
        return Signals(**{"key": self.key, "train": self.train, **self._given, **changes})

    def per_token(self) -> dict[str, Array]:
        """The given per-token signals with the token axis second, [B,N,...], as selection and merging need them."""
        axes = {name: SIGNALS[name].axis for name in self._given}
        return {name: jnp.moveaxis(self._given[name], axis, 1) for name, axis in axes.items() if axis is not None}

    def of_text(self) -> dict[str, Array]:
        """The given signals that have no axis of visual tokens."""
        return {name: value for name, value in self._given.items() if SIGNALS[name].axis is None}

    def with_per_token(self, rows: Mapping[str, Array]) -> Signals:
        """Inverse of `per_token`, for tokens that were selected, merged or split into windows."""
        return self.replace(**{name: jnp.moveaxis(row, 1, SIGNALS[name].axis) for name, row in rows.items()})
