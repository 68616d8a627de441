"""HiPrune: keep what a middle layer of the vision tower attends to, its neighbours, and what the last layer attends to.

"HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models", arXiv:2508.00553.
Middle layers attend to objects, deep layers to registers of the whole image: anchors and the patches beside them come
from the former, what is left of the budget from the latter. No class token is needed.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError
from jtok.ops import budget, schedule, select
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.sites import TOWER_OUTPUT, Site
from jtok.target import Target
from jtok.tokens import Tokens

_OBJECT = "hiprune"  # what the object layer said, among what tokens carry


def neighbourhood(
    score: Float[Array, "B N"], anchors: int, place: Int[Array, "B N"], width: int | Int[Array, "B 1"]
) -> Bool[Array, "B N"]:
    """The `anchors` patches of highest score, and those one place or one row before and after them.

    place: number of every patch in raster order, -1 = padding; width: patches in a row. As in the authors' code, the
    neighbour of the end of a row is the start of the next, and places outside the image are clamped to its ends.
    """
    top = select.top_k(score, anchors, valid=place >= 0, order="score")
    centre = jnp.take_along_axis(place, top, 1)
    around = jnp.stack([centre, centre - 1, centre + 1, centre - width, centre + width], 1).reshape(len(place), -1)
    around = jnp.clip(around, 0, place.max(1, keepdims=True))
    return (place[:, :, None] == around[:, None]).any(-1)


def fill(
    chosen: Bool[Array, "B N"], deep: Float[Array, "B N"], keep: int, valid: Bool[Array, "B N"] | None = None
) -> Bool[Array, "B N"]:
    """`chosen`, and so many patches of highest `deep` - chosen that there are `keep`.

    Where `deep` is not below 1, one that is chosen already may be picked again, and fewer than `keep` are left.
    """
    free = keep - chosen.sum(1, keepdims=True)
    order = select.top_k(deep - chosen, keep, valid=valid, order="score")
    registers = select.members(jnp.where(jnp.arange(keep) < free, order, chosen.shape[1]), chosen.shape[1])
    return chosen | (registers if valid is None else registers & valid)


@dataclasses.dataclass(frozen=True)
class ObjectLayer(Reducer):
    """Leaves the attention that each token receives in the middle layer among what it carries, [B,N]."""

    reads = ("attention_received",)
    observes = True

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        return tokens.replace(carry={**tokens.carry, _OBJECT: s.attention_received}), memory


@dataclasses.dataclass(frozen=True)
class HiPrune(Reducer):
    """Keeps `keep` patches: `anchors` with their neighbours, and registers. `ObjectLayer` comes before it.

    repick: deep attention is a sum over queries rather than a mean, so that registers may be anchors already and fewer
    patches be left, as in the authors' code for Qwen2.5-VL.
    """

    keep: int
    anchors: int
    repick: bool = False

    reads = ("attention_received",)

    @property
    def adaptive(self) -> bool:
        """Whether registers may be picked again."""
        return self.repick

    def count(self, patches: int) -> int:
        return min(self.keep, patches)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        """The last layer's attention, and 1 more for what the middle layer chose."""
        head, body = tokens.split()
        chosen = self._chosen(body)
        none = jnp.zeros(head.x.shape[:2], bool)
        return self._deep(tokens, s) + jnp.concatenate([none, chosen], 1)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        rest = {name: a for name, a in tokens.carry.items() if name != _OBJECT}
        if self.keep >= patches.count:
            return tokens.replace(carry=rest), memory
        mask = fill(self._chosen(patches), self._deep(tokens, s)[:, tokens.special :], self.keep, patches.valid)
        index = select.member_index(mask, self.keep)
        fixed = not self.repick and patches.valid is None
        counts = None if fixed else jnp.arange(self.keep) < mask.sum(1, keepdims=True)
        left = special.concat(patches.take(index, counts))
        return left.replace(carry={name: left.carry[name] for name in rest}), memory

    def _deep(self, tokens: Tokens, s: Signals) -> Float[Array, "B N"]:
        queries = 1 if self.repick else tokens.mask().sum(1, keepdims=True)
        return s.attention_received / queries

    def _chosen(self, patches: Tokens) -> Bool[Array, "B N"]:
        """Anchors and neighbours, by where patches lie: images in a padded batch have rows of their own length."""
        row, column = (jnp.round(patches.position[..., axis]).astype(jnp.int32) for axis in (-2, -1))
        width = patches.grid[-1]
        if patches.valid is not None:
            width = jnp.where(patches.valid, column, 0).max(1, keepdims=True) + 1
        place = jnp.where(patches.mask(), row * width + column, -1)
        return neighbourhood(patches.carry[_OBJECT], min(self.anchors, patches.count), place, width)


@method(
    name="hiprune",
    title="HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models",
    paper="arXiv:2508.00553",
    family="vlm-encoder",
    training="none",
    assignment="none",
    site="end of the tower; reads a middle layer too",
    idea="keep object anchors, their neighbours, and registers",
    uses_position=True,
)
def plan(
    target: Target,
    keep: float = 0.334,
    tokens: int | None = None,
    alpha: float = 0.1,
    layer: int | None = None,
    repick: bool | None = None,
) -> Plan:
    """Keeps `tokens` of a crop, or round(keep * patches); round(tokens * alpha / 5) of them are anchors.

    layer: block whose attention finds objects, counted from 0 (default: the authors' for CLIP, 8 of 24, or without a
    class token for Qwen2.5-VL, 15 of 32, moved to this depth). repick: see `HiPrune` (default: as the authors' codes
    do, in towers without a class token). Raises UserError for alpha outside [0, 1], anchors whose neighbourhoods exceed
    the budget, and a layer that is not before the last.
    """
    count = budget.visual_tokens(target.patches, keep, tokens)
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha is {alpha}; it is a share of the tokens, from 0 to 1.")
    anchors = round(count * alpha / 5)
    if 5 * anchors > count:
        raise UserError(f"{anchors} anchors and their neighbours may be more than {count} tokens: lower alpha.")
    if layer is None:
        block, published = (8, 24) if target.has_class else (15, 32)
        (layer,) = schedule.blocks_at((block,), published, target.depth) or (0,)
    if not 0 <= layer < max(1, target.depth - 1):
        raise UserError(f"layer {layer} cannot find objects; give one from 0 to {target.depth - 2}, before the last.")
    repick = not target.has_class if repick is None else repick
    return Plan({Site("tower", layer): ObjectLayer(), TOWER_OUTPUT: HiPrune(count, anchors, repick)})
