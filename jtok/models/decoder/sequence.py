"""The sequence that a language model reads: text around visual tokens, whose number may change on the way.

It is described once. `Places` gives the place in the prompt of every feature that a tower may produce: its RoPE
position, and how many tokens of text come before it. A reduced token takes the place of the patch nearest to its
centre. So a sequence can be reassembled after any reduction, at any site, whatever the method did: text and visual
tokens in the order of the prompt, visual tokens between the same two text tokens in the order in which the method
left them, padding last. Its length is static.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
from jtok.models.decoder.decoder import running_positions
from jtok.plan import Positions
from jtok.tokens import Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Where the F features of a row are placed in its prompt; S segments (crops, frames) of known start and width."""

    position: Int[Array, "B F P"]
    before: Int[Array, "B F"]  # tokens of text before it
    inside: Bool[Array, "B F"]  # False: cropped (the padding of a mosaic of crops), or no feature at all
    start: Int[Array, "B S"]  # first feature of a segment
    width: Int[Array, "B S"]  # features in a row of its grid

    def of(self, tokens: Tokens) -> Int[Array, "B N"]:
        """The feature nearest to each token's centre; class tokens are placed at their segment's first."""
        segment = jnp.clip(tokens.segment, 0, self.start.shape[1] - 1)
        start, width = (jnp.take_along_axis(a, segment, 1) for a in (self.start, self.width))
        row, column = (jnp.maximum(jnp.round(tokens.position[..., axis]), 0).astype(jnp.int32) for axis in (-2, -1))
        return jnp.clip(start + row * width + column, 0, self.before.shape[1] - 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Text:
    """The tokens of a prompt that are not visual, in order. `x` may be embeddings, or hidden states at a layer."""

    x: Float[Array, "B M D"]
    position: Int[Array, "B M P"]
    valid: Bool[Array, "B M"]
    question: Int[Array, "B T"]  # which of them come after the last visual token
    question_valid: Bool[Array, "B T"]
    asks: Int[Array, "B R"] | None = None  # those that an answer follows (-1 = none); in training only


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """Text and visual tokens, L = M + N slots: the valid ones first, unless some were masked in place."""

    x: Float[Array, "B L D"]
    position: Int[Array, "B L P"]
    valid: Bool[Array, "B L"]
    slots: Int[Array, "B N"]  # of the visual tokens
    others: Int[Array, "B M"]  # slots of the text
    visual: Tokens  # the visual tokens without their features: its `x` has width 0
    text: Text  # likewise
    places: Places

    @property
    def last(self) -> Int[Array, " B"]:
        """Slot of the last token of each row."""
        slots = jnp.arange(self.valid.shape[1], dtype=jnp.int32)
        return jnp.max(jnp.where(self.valid, slots, 0), 1)

    @property
    def asking(self) -> tuple[Int[Array, "B R"], Float[Array, "B R"]]:
        """(slots of the tokens that an answer follows, weights that sum to one): the last token, or `Text.asks`."""
        asks = self.text.asks
        if asks is None:
            return self.last[:, None], jnp.ones((self.valid.shape[0], 1), jnp.float32)
        weight = (asks >= 0).astype(jnp.float32)
        slots = jnp.take_along_axis(self.others, jnp.maximum(asks, 0), 1)
        return slots, weight / jnp.maximum(weight.sum(1, keepdims=True), 1)

    @property
    def question(self) -> Int[Array, "B T"]:
        """Slots of the question's tokens."""
        return jnp.take_along_axis(self.others, self.text.question, 1)

    @property
    def is_visual(self) -> Bool[Array, "B L"]:
        """Which slots hold visual tokens that are valid."""
        return self._at_slots(jnp.zeros_like(self.valid), True) & self.valid

    @property
    def after_image(self) -> Bool[Array, "B L"]:
        """Which slots come after the last visual token of their row."""
        slots = jnp.arange(self.valid.shape[1], dtype=jnp.int32)
        last = jnp.max(jnp.where(self.is_visual, slots, -1), 1, keepdims=True)
        return (slots > last) & self.valid

    @property
    def bias(self) -> Float[Array, "B L"] | None:
        """Log of the size of every token, 0 for text; None unless attention is proportional."""
        if not self.visual.proportional:
            return None
        return self._at_slots(jnp.zeros(self.valid.shape, jnp.float32), jnp.log(jnp.maximum(self.visual.size, 1e-6)))

    def _at_slots(self, array: Array, values: Array | bool) -> Array:
        return array.at[jnp.arange(array.shape[0])[:, None], self.slots].set(values)

    def replace(self, **changes) -> TokenSequence:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def visual_tokens(self) -> Tokens:
        """The visual tokens with their features, as a reducer sees them."""
        return self.visual.replace(x=kernels.gather(self.x, self.slots))

    def hiding(self, tokens: Tokens) -> TokenSequence:
        """The sequence in which visual tokens that are not valid in `tokens` are masked from attention."""
        valid = self._at_slots(self.valid, tokens.mask())
        return self.replace(valid=valid, visual=tokens.replace(x=tokens.x[..., :0]))

    def with_visual(self, tokens: Tokens, positions: Positions = "keep") -> TokenSequence:
        """The sequence with its visual tokens replaced."""
        rows = {"x": self.x, "position": self.position, "valid": self.valid}
        text = dataclasses.replace(self.text, **kernels.gather(rows, self.others))
        return assemble(tokens, text, self.places, positions)


def assemble(tokens: Tokens, text: Text, places: Places, positions: Positions = "keep") -> TokenSequence:
    """The sequence of visual tokens and text.

    positions: `keep` gives every token the position of its place in the whole prompt, so that positions have gaps;
    `renumber` numbers the remaining tokens consecutively from the prompt's first position. `restore` and `order` do
    the same respectively, with visual tokens sorted by place.
    """
    n, m, features = tokens.count, text.x.shape[1], places.before.shape[1]
    place, visual_valid = places.of(tokens), tokens.mask()
    before = jnp.take_along_axis(places.before, place, 1)
    among = place if positions in ("restore", "order") else jnp.arange(n)
    step = max(n, features) + 1
    end = (m + 1) * step
    visual_rank = jnp.where(visual_valid, before * step + among, end)
    text_rank = jnp.where(text.valid, jnp.arange(m) * step + step - 1, end)
    order = jnp.argsort(jnp.concatenate([visual_rank, text_rank], 1), 1, stable=True).astype(jnp.int32)
    where = jnp.argsort(order, 1).astype(jnp.int32)  # old -> new slot
    rows = {
        "x": jnp.concatenate([tokens.x.astype(text.x.dtype), text.x], 1),
        "position": jnp.concatenate([kernels.gather(places.position, place), text.position], 1),
        "valid": jnp.concatenate([visual_valid, text.valid], 1),
    }
    if positions in ("renumber", "order"):
        first = jnp.min(jnp.where(rows["valid"], rows["position"][..., 0], jnp.iinfo(jnp.int32).max), 1, keepdims=True)
    rows = kernels.gather(rows, order)
    if positions in ("renumber", "order"):
        rows["position"] = running_positions(rows["valid"], rows["position"].shape[-1], first)
    bare = dataclasses.replace(text, x=text.x[..., :0])
    return TokenSequence(
        **rows,
        slots=where[:, :n],
        others=where[:, n:],
        visual=tokens.replace(x=tokens.x[..., :0]),
        text=bare,
        places=places,
    )


def fold(tokens: Tokens, crops: int) -> Tokens:
    """Tokens of [B * crops] crops as those of B rows, crop after crop; the segment is the crop's index in its row."""
    b, n = tokens.x.shape[0] // crops, tokens.count
    rows = jax.tree.map(lambda a: a.reshape(b, crops * n, *a.shape[2:]), tokens._rows())
    owner = tokens.owner.reshape(b, crops, -1)
    shift = (jnp.arange(crops, dtype=jnp.int32) * n)[:, None]
    segment = rows["segment"] + jnp.repeat(jnp.arange(crops, dtype=jnp.int32), n)
    rows = {**rows, "segment": segment}
    owner = jnp.where(owner >= 0, owner + shift, -1).reshape(b, -1)
    return tokens.replace(**rows, owner=owner)
