"""HiRED: early attention over the whole image sets each crop's budget, and late attention spends it.

"HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models in
Resource-Constrained Environments", arXiv:2408.10945, AAAI 2025. Needs no training. Observers in the tower record
the class token's attention, summed over heads, in the first layer and in the last one run. After the projector, where
all crops of an image are available, the whole image (its first crop) gets a share `alpha` of the budget. The crops
divide the rest in proportion to how many of the whole image's important patches (the top 1 - alpha in the first layer)
belong to them. Each then keeps the patches with the highest attention in the last layer. An image without crops spends
its entire budget on itself.

Which patches belong to a crop: the paper takes those of the matching area, which requires the layout of the crops
(`crops=`); the released code divides the image into as many equal horizontal strips as there are crops, in order.
Budgets are truncated, so part of the total may stay unspent and becomes padding in the language model. Patches in the
mosaic's padding are never kept here, whereas the released code may spend budget on them.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jtok.ops import budget, select
from jtok.plan import Plan
from jtok.pruner import Pruner
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens

EARLY, LATE = "hired.early", "hired.late"  # class attention in the tokens' carry, [B,N] float32


@dataclasses.dataclass(frozen=True)
class Observer(Reducer):
    """Writes the class token's attention, summed over heads, into the tokens' carry under `name`."""

    name: str
    observes = True
    reads = ("class_attention",)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        return tokens.replace(carry={**tokens.carry, self.name: s.class_attention.sum(1)}), memory


class HiRED(Pruner):
    """For a single image without crops: keeps the patches of highest class attention."""

    reads = ("class_attention",)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return s.class_attention.sum(1)


@dataclasses.dataclass(frozen=True)
class HiREDCrops(Reducer):
    """Keeps at most int(rate * patches) over all crops of a row, by the scores that the observers recorded.

    A row lists its crops in sequence, the whole image before its crops; a row may hold several images.
    """

    rate: float
    alpha: float = 0.5
    crops: tuple[int, int] | None = None
    reads = ("crop_image",)

    def count(self, patches: int) -> int:
        return max(1, int(patches * self.rate))

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        """The last layer's attention, by which each crop's patches are ranked."""
        return tokens.carry[LATE]

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        b, crops = tokens.x.shape[0], tokens.owner.shape[1] // math.prod(tokens.grid)
        early, late, valid, image = (
            a.reshape(b, crops, -1) for a in (tokens.carry[EARLY], tokens.carry[LATE], tokens.mask(), s.crop_image)
        )
        kept = rank(jnp.where(valid, late, -jnp.inf)) < self.budgets(early, image[..., 0])[..., None]
        kept = (kept & valid).reshape(b, -1)
        index = select.member_index(kept, min(self.count(tokens.count), tokens.count))
        carry = {name: value for name, value in tokens.carry.items() if name not in (EARLY, LATE)}
        return tokens.replace(carry=carry).take(index, jnp.take_along_axis(kept, index, 1)), memory

    def budgets(self, early: Float[Array, "B S N"], image: Int[Array, "B S"]) -> Int[Array, "B S"]:
        """Patches that each of S crops may keep. image: index of the image a crop belongs to, -1 for no crop.

        Truncates where the released code does, in float64 and float32 as it does.
        """
        crops, n = early.shape[1:]
        together = (image[:, :, None] == image[:, None]) & (image >= 0)[:, None]
        parts = together.sum(-1)
        lead = jnp.argmax(together, -1)  # the whole image is the first of its crops
        number = jnp.arange(crops) - lead - 1  # of a crop within its image, -1 for the whole
        important = rank(early) < int(n * (1 - self.alpha))
        important = jnp.take_along_axis(important, lead[..., None], 1)
        inside = important & (self._crop_of(n, parts) == number[..., None])
        whole, rest = (jnp.asarray(table)[parts] for table in self._totals(crops, n))
        shares = budget.split_over_segments(inside.sum(-1).astype(jnp.float32), rest, n, together)
        return jnp.where(image < 0, 0, jnp.where(number < 0, whole, shares))

    def _totals(self, crops: int, n: int) -> np.ndarray:
        """[2, crops + 1] tokens for the whole image and for its crops together, by the number of both."""
        rows = [(0, 0)]
        for parts in range(1, crops + 1):
            total = int(parts * n * self.rate)
            whole = min(int(total * self.alpha) if parts > 1 else total, n)
            rows.append((whole, min(total - whole, (parts - 1) * n)))
        return np.asarray(rows, np.int32).T

    def _crop_of(self, n: int, parts: Int[Array, "B S"]) -> Int[Array, "B S N"]:
        """The crop that each of n patches of the whole image belongs to, for images of `parts` crops."""
        patch = jnp.arange(n)
        if self.crops is None:
            return patch * (parts[..., None] - 1) // n
        side = math.isqrt(n)
        row, column = (at * cut // side for at, cut in zip((patch // side, patch % side), self.crops, strict=True))
        return jnp.broadcast_to(row * self.crops[1] + column, (*parts.shape, n))


def rank(score: Float[Array, "B S N"]) -> Int[Array, "B S N"]:
    """0 for the highest score of a crop; ties are broken by index."""
    return jnp.argsort(jnp.argsort(-score, -1, stable=True), -1)


@method(
    name="hired",
    title="HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models "
    "in Resource-Constrained Environments",
    paper="arXiv:2408.10945, AAAI 2025",
    family="vlm-encoder",
    training="none",
    assignment="none",
    site="after the projector, scores from the first and last tower layer",
    idea="split the budget over crops by early class attention",
    claims=(
        Claim("LLaVA-NeXT-7B", "20 % of the tokens, Tesla P40", 4.7, metric="generation throughput (times)"),
        Claim("LLaVA-NeXT-7B", "20 % of the tokens, Tesla P40", 15.0, metric="time to first token saved (s)"),
        Claim("LLaVA-NeXT-7B", "20 % of the tokens, Tesla P40", 2.3, metric="memory of one inference saved (GB)"),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    tokens: int | None = None,
    alpha: float = 0.5,
    crops: tuple[int, int] | None = None,
) -> Plan:
    """`tokens` per crop, or the share `keep`, is the budget of an image and its crops together (0.2 in the paper).

    alpha: the whole image's share of it. crops: rows and columns of crops, for a batch with a single layout, to divide
    the budget by area; by default it is divided by strips, as in the released code. Survivors are renumbered. Without
    a language model there are no crops to divide it over, and the method is placed after the tower.
    """
    kept = budget.visual_tokens(target.patches, keep, tokens)
    if not target.layers:
        return Plan({"tower.output": HiRED(kept)})
    # the next float up, so that truncation never loses one of a whole number of tokens
    rate = keep if tokens is None else math.nextafter(tokens / target.patches, math.inf)
    sites: dict[str, Reducer] = {"tower.block.0.output": Observer(EARLY), "tower.output": Observer(LATE)}
    return Plan({**sites, "projector": HiREDCrops(rate, alpha, crops)}, positions="renumber")
