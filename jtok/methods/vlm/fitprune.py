"""FitPrune: a recipe, fitted once for a model, says how many visual tokens leave inside of each layer.

"Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models", arXiv:2409.10197,
AAAI 2025. Needs no training. A layer attends with all the tokens that enter it, and caches them; then those leave that
get least attention, by the product of what they get from visual tokens and from the question (the largest head of every
row), and its MLP runs on the others. The fit looks for the smallest recipe that meets a reduction of computation while
the attention that tokens get in sum changes by the same share alpha in every layer.

The paper publishes recipes for LLaVA-1.5-7B. For other models, depths and shares there are two ways: `jtok calibrate`,
or, of our own, interpolation between the published ones in the share that is left and in depth.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError
from jtok.ops import budget
from jtok.plan import Plan, at_blocks
from jtok.pruner import SharePruner
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

#: Percent of computation saved -> tokens that leave in each layer of LLaVA-1.5-7B, which has 576 of them.
RECIPES: dict[int, tuple[int, ...]] = {
    10: (0, 0, 1, 2, 1, 0, 1, 4, 5, 5, 11, 4, 2, 2, 0, 0, 1, 1, 2, 4, 2, 10, 1, 1, 1, 2, 1, 1, 0, 1, 0, 0),
    20: (0, 0, 3, 3, 1, 1, 4, 16, 14, 15, 24, 4, 2, 3, 2, 0, 6, 0, 5, 13, 4, 19, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0),
    30: (0, 0, 7, 6, 4, 5, 16, 40, 24, 21, 24, 4, 2, 3, 4, 0, 16, 0, 11, 26, 6, 32, 3, 1, 0, 1, 2, 2, 4, 0, 0, 0),
    40: (0, 1, 21, 13, 14, 11, 41, 53, 29, 15, 14, 5, 1, 4, 5, 1, 26, 1, 13, 28, 6, 27, 2, 1, 0, 0, 1, 1, 2, 0, 0, 0),
    50: (3, 7, 49, 24, 29, 17, 59, 41, 26, 8, 10, 6, 2, 5, 7, 2, 30, 3, 13, 27, 5, 23, 2, 1, 0, 0, 1, 1, 2, 0, 0, 0),
    55: (6, 17, 69, 31, 34, 19, 59, 30, 23, 6, 8, 7, 2, 5, 8, 2, 29, 4, 12, 25, 4, 19, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    60: (14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4, 26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    70: (48, 79, 118, 41, 33, 17, 36, 9, 9, 2, 3, 2, 1, 3, 4, 8, 18, 7, 8, 20, 4, 13, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    80: (128, 127, 118, 35, 26, 8, 13, 3, 2, 1, 0, 0, 0, 2, 1, 8, 7, 8, 5, 11, 2, 6, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0),
    90: (262, 153, 80, 19, 13, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 1, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0),
}

#: Layers and visual tokens of the model of the recipes.
DEPTH, PATCHES = 32, 576

#: What the paper's recipe for 60% leaves.
KEEP = 127 / 576

#: Where the fit leaves what it observes.
MEMORY = "fitprune"


@dataclasses.dataclass(frozen=True)
class FitPrune(SharePruner):
    """Keeps the share `keep` of the `patches` at the first site: by the product of the attention that tokens get from
    visual tokens and from the question."""

    patches: int
    reads = ("peak_attention", "peak_text_attention")

    def count(self, patches: int) -> int:
        return min(patches, budget.share_of(self.patches, self.keep))

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return s.peak_attention * s.peak_text_attention


def recipe_for(keep: float, depth: int, patches: int) -> tuple[int, ...]:
    """Tokens that leave in each layer so that round(keep * patches) are left (a rule of ours).

    The shares that recipes leave after each layer are interpolated between the two published recipes that leave next
    more and next less (all, and none, at the ends), and layers are matched by their share of the depth. At 32 layers,
    576 patches and the share that a published recipe leaves, it is that recipe.
    """
    left = [np.ones(DEPTH + 1), *(np.append(1, 1 - np.cumsum(r) / PATCHES) for r in RECIPES.values())]
    left.append(np.append(1, np.zeros(DEPTH)))
    ends = [-share[-1] for share in left]
    above = min(max(bisect.bisect_left(ends, -keep), 1), len(left) - 1)
    more, less = left[above - 1], left[above]
    mixed = less + (keep - less[-1]) / (more[-1] - less[-1]) * (more - less)
    at = np.interp(np.linspace(0, DEPTH, depth + 1), np.arange(DEPTH + 1), mixed)
    counts = np.maximum(np.round(at * patches), 1).astype(int)
    return tuple(int(n) for n in -np.diff(counts))


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the fit's count of computation depends on."""

    depth: int
    width: int  # features of the language model
    mlp: int  # hidden features of its MLPs

    def attention(self, n: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """MACs of queries, keys, values and attention of n visual tokens."""
        return 3 * n * self.width**2 + 2 * n**2 * self.width

    def rest(self, n: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """MACs of the output projection and the MLP."""
        return n * self.width**2 + 3 * self.width * self.mlp * n


class Thresholds(nnx.Module, Reducer):
    """The fit's selection in one layer: of both orders of attention, the smallest tokens whose loss the bound allows.

    Tokens that are in both sets are hidden. cross, inside [B]: what the sums of attention from the question and from
    visual tokens shall not fall below. They are arrays of the module, so that one program serves the whole search.
    Leaves, under its layer in the memory: both sums, how many tokens entered and how many are left, each [B].
    """

    reads = ("peak_attention", "peak_text_attention")

    def __init__(self, layer: int, cross: Float[Array, " B"], inside: Float[Array, " B"]):
        self.layer, self.cross, self.inside = layer, nnx.Param(cross), nnx.Param(inside)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        real = tokens.mask()
        attention = {"cross": s.peak_text_attention, "inside": s.peak_attention}
        goes = real
        for name, bound in (("cross", self.cross[...]), ("inside", self.inside[...])):
            goes = goes & smallest(attention[name], real, bound)
        stays = real & ~goes
        sums = {name: jnp.where(real, a, 0).sum(1) for name, a in attention.items()}
        entry = {**sums, "entered": real.sum(1), "left": stays.sum(1)}
        return tokens.replace(valid=stays), {**memory, MEMORY: {**memory.get(MEMORY, {}), self.layer: entry}}


def smallest(attention: Float[Array, "B N"], real: Bool[Array, "B N"], bound: Float[Array, " B"]) -> Bool[Array, "B N"]:
    """The smallest tokens that may go while what is left sums to at least `bound`: one fewer than first falls below.

    If even the largest token alone is not below the bound, all others may go (the released code then takes the number
    of whatever it selected before).
    """
    order = jnp.argsort(jnp.where(real, attention, jnp.inf), 1)
    rank = jnp.argsort(order, 1)
    ordered = jnp.take_along_axis(jnp.where(real, attention, 0), order, 1)
    gone = jnp.cumsum(ordered, 1) - ordered  # of the i smallest
    below = (ordered.sum(1, keepdims=True) - gone < bound[:, None]) & jnp.take_along_axis(real, order, 1)
    count = real.sum(1)
    first = jnp.where(below.any(1), jnp.argmax(below, 1), count)
    return (rank < jnp.maximum(first - 1, 0)[:, None]) & real


#: [layer][name] -> an array over all samples.
Layers = Sequence[dict[str, np.ndarray]]


def thresholds(bounds: Layers) -> Plan:
    """The plan with the fit's selection in every layer, for the samples of the bounds."""
    each = [Thresholds(i, jnp.asarray(b["cross"]), jnp.asarray(b["inside"])) for i, b in enumerate(bounds)]
    return Plan(at_blocks(range(len(bounds)), "after_attention", each, stage="llm"), positions="keep")


def no_bounds(depth: int, samples: int) -> Layers:
    """Bounds that no sum is above: nothing leaves."""
    return [{name: np.full(samples, np.inf, np.float32) for name in ("cross", "inside")}] * depth


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a fit found: the recipe of its last step, its steps, and the sums [layer][name] of the unreduced model."""

    removals: tuple[int, ...]
    alphas: tuple[float, ...]
    reached: tuple[bool, ...]
    sums: Layers


def fit(observe: Callable[[Layers], Layers], samples: int, shape: Shape, saving: float) -> Fit:
    """The recipe that saves the share `saving` of the computation on visual tokens.

    observe: runs the model over all samples with these bounds, and returns what `Thresholds` leaves. Bisection on alpha
    in [0, 1] down to 0.01; the result is the recipe of the last step, whether it saves enough or not, as in the
    released code.
    """
    whole = observe(no_bounds(shape.depth, samples))
    low, high, alphas, reached, removals = 0.0, 1.0, [], [], ()
    while high - low > 0.01 + 1e-6:
        alpha = (low + high) / 2
        share = np.float32(1 - alpha)
        seen = observe([{name: layer[name] * share for name in ("cross", "inside")} for layer in whole])
        removals, enough = spend([layer["left"] for layer in seen], whole[0]["entered"], shape, saving)
        low, high = (low, alpha) if enough else (alpha, high)
        alphas.append(alpha)
        reached.append(enough)
    return Fit(removals, tuple(alphas), tuple(reached), whole)


def spend(
    left: Sequence[Int[np.ndarray, " samples"]], entered: Int[np.ndarray, " samples"], shape: Shape, saving: float
) -> tuple[tuple[int, ...], bool]:
    """(tokens to remove in each layer, whether they suffice), given what the selection leaves after each layer.

    Layers are gone through until what was spent, and what the rest would cost with no further removal, is little
    enough; later layers remove nothing.
    """
    n = np.asarray(entered, np.float64)
    limit = (1 - saving) * shape.depth * (shape.attention(n) + shape.rest(n)).mean()
    removals, spent = [0] * shape.depth, 0.0
    for layer, stay in enumerate(left):
        spent += shape.attention(n).mean()
        ahead = shape.rest(n) + (shape.depth - 1 - layer) * (shape.attention(n) + shape.rest(n))
        if spent + ahead.mean() <= limit:
            return tuple(removals), True
        removals[layer] = int((n - stay).sum()) // len(n)
        n = np.asarray(stay, np.float64)
        spent += shape.rest(n).mean()
    return tuple(removals), False


def calibrate(model: Any, batches: Iterable[Any], reduction: float = 60) -> dict[str, Any]:
    """{"removals": tokens that leave in each layer} for a reduction in percent of the computation on visual tokens.

    Every sample is read eight times. Raises UserError for a reduction outside (0, 100).
    """
    if not 0 < reduction < 100:
        raise UserError(f"the reduction is {reduction}; give a percentage between 0 and 100.")
    language, batches = model.config.language, list(batches)
    rows = [inputs.ids.shape[0] for inputs in batches]
    ends = np.cumsum([0, *rows])

    def observe(bounds: Layers) -> Layers:
        parts = []
        for inputs, start, stop in zip(batches, ends, ends[1:], strict=False):
            part = [{name: bound[start:stop] for name, bound in layer.items()} for layer in bounds]
            reading = dataclasses.replace(model, plan=thresholds(part)).read(inputs, max_new_tokens=0)
            parts.append(reading.memory[MEMORY])
        return joined(parts)

    shape = Shape(language.depth, language.width, language.mlp)
    return {"removals": list(fit(observe, sum(rows), shape, reduction / 100).removals)}


def joined(parts: Sequence[dict[int, dict[str, Array]]]) -> Layers:
    """What `Thresholds` left for several batches, as arrays over all samples."""
    layers = sorted(parts[0])
    return [{name: np.concatenate([np.asarray(p[i][name]) for p in parts]) for name in parts[0][i]} for i in layers]


@method(
    name="fitprune",
    title="Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models",
    paper="arXiv:2409.10197, AAAI 2025",
    family="vlm-decoder",
    training="none",
    assignment="none",
    site="every layer of the language model, after attention",
    idea="fit how many tokens leave in each layer",
    claims=(Claim("LLaVA-NeXT", "0.5 points of accuracy lost", 54.9, metric="FLOPs saved (%)"),),
    calibrate=calibrate,
)
def plan(
    target: Target,
    keep: float = KEEP,
    tokens: int | None = None,
    reduction: int | None = None,
    removals: Sequence[int] | None = None,
) -> Plan:
    """`keep` (or `tokens`) is what the last layer leaves, by `recipe_for`; the default is the paper's recipe for 60%.

    reduction: one of the published recipes, by percent of computation saved, for 32 layers and 576 visual tokens.
    removals: a recipe of your own, such as `jtok calibrate` finds: tokens that leave in each layer. Prompts with more
    or fewer visual tokens than the target has lose the same share of theirs. Raises UserError for more than one of
    these, a recipe that does not fit the model, and one that leaves nothing.
    """
    if not target.layers:
        raise UserError("fitprune is placed in a language model, and this tower has none: load one that has.")
    if sum((keep != KEEP, tokens is not None, reduction is not None, removals is not None)) > 1:
        raise UserError("fitprune takes one of keep, tokens, reduction and removals: give one of them.")
    patches = target.patches
    if reduction is not None:
        removals = _published(reduction, target)
    elif removals is None:
        share = keep if tokens is None else budget.visual_tokens(patches, keep, tokens) / patches
        removals = recipe_for(share, target.layers, patches)
    if len(removals) != target.layers:
        raise UserError(f"fitprune was given removals for {len(removals)} layers; the model has {target.layers}.")
    left = patches - np.cumsum(removals)
    if min(removals) < 0 or left[-1] < 1:
        raise UserError(f"fitprune cannot remove {tuple(removals)} of {patches} tokens: none below 0, one must stay.")
    layers = [i for i, count in enumerate(removals) if count]
    reducers = [FitPrune(int(left[i]) / patches, patches) for i in layers]
    return Plan(at_blocks(layers, "after_attention", reducers, stage="llm"))


def _published(reduction: int, target: Target) -> tuple[int, ...]:
    if (target.layers, target.patches) != (DEPTH, PATCHES):
        raise UserError(
            f"fitprune's published recipes are for {DEPTH} layers and {PATCHES} visual tokens, this model has "
            f"{target.layers} and {target.patches}: give keep, or removals from `jtok calibrate`."
        )
    if reduction not in RECIPES:
        raise UserError(f"fitprune has no recipe for {reduction}%: choose {', '.join(map(str, RECIPES))}.")
    return RECIPES[reduction]
