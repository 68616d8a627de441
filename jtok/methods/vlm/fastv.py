"""FastV: after the second layer of the language model, keep visual tokens that the prompt's last token attends to.

"An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models",
arXiv:2403.06764, ECCV 2024. Needs no training. Reads the previous layer's attention from the prompt's last token,
averaged over heads; survivors keep their order and positions. The released code can also mask the others instead of
dropping them (same answers, no time saved), which the paper's ablations use.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.ops import budget, select
from jtok.plan import Plan
from jtok.pruner import SharePruner
from jtok.reducer import Memory
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens, rename


class FastV(SharePruner):
    """Keeps the share with the highest attention from the last token, mean over heads."""

    reads = ("last_token_attention",)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return s.last_token_attention.mean(1)


class RandomAtInput(SharePruner):
    """The paper's lower bound: a random share, from the first layer on."""

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return jax.vmap(lambda key: jax.random.uniform(key, tokens.x.shape[1:2]))(s.key)


@dataclasses.dataclass(frozen=True)
class Hide(SharePruner):
    """Leaves all tokens in place and masks those that `pruner` would drop in all later layers."""

    pruner: SharePruner

    @property
    def reads(self) -> tuple[str, ...]:
        """What the pruner reads."""
        return self.pruner.reads

    def count(self, patches: int) -> int:
        return patches

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        return self.pruner.score(tokens, s, memory)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        n = tokens.count
        index, counts, memory = self.best(tokens, s, memory)
        kept = select.members(jnp.where(counts, index, n), n) & tokens.mask()
        owner = rename(tokens.owner, jnp.where(kept, jnp.arange(n, dtype=jnp.int32), -1))
        return tokens.replace(valid=kept, size=jnp.where(kept, tokens.size, 0), owner=owner), memory


@method(
    name="fastv",
    title="An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language "
    "Models",
    paper="arXiv:2403.06764, ECCV 2024",
    family="vlm-decoder",
    training="none",
    assignment="none",
    site="before the third layer of the language model",
    idea="keep what the prompt's last token attends to",
    claims=(
        Claim("LLaVA-1.5-13B", "K=2, R=50% (unreduced: 81.9)", 81.3, metric="A-OKVQA accuracy (%)"),
        Claim("LLaVA-1.5-13B", "K=2, R=75% (unreduced: 81.9)", 80.9, metric="A-OKVQA accuracy (%)"),
        Claim("LLaVA-1.5-7B", "K=3, R=50% (unreduced: 105.5)", 105.5, metric="Nocaps CIDEr"),
        Claim("LLaVA-1.5-7B", "K=3, R=50% (unreduced: 108.7)", 108.4, metric="COCO val2014 CIDEr"),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    tokens: int | None = None,
    layer: int | None = None,
    variant: Literal["drop", "mask"] = "drop",
) -> Plan:
    """`keep` is 1 - R in the paper.

    layer: K in the paper, the first layer that sees the reduced set (default 2, or the last of a shallower model).
    variant: `mask` hides tokens instead of dropping them; only then may the layer be 0, with a random selection.
    Raises UserError for a layer that the model does not have.
    """
    share = keep if tokens is None else budget.visual_tokens(target.patches, keep, tokens) / target.patches
    layer = min(2, target.layers - 1) if layer is None else layer
    first = 1 if variant == "drop" else 0
    if variant not in ("drop", "mask"):
        raise UserError(f"fastv has no variant '{variant}': choose drop or mask.")
    if not first <= layer < target.layers:
        raise UserError(
            f"fastv cannot be placed before layer {layer}: choose {first} to {target.layers - 1} of the language model."
        )
    pruner = FastV(share) if layer else RandomAtInput(share)
    site = f"llm.layer.{layer}.input" if layer else "llm.input"
    return Plan({site: pruner if variant == "drop" else Hide(share, pruner)})
