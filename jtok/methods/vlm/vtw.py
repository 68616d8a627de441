"""VTW: from one layer of the language model on, no visual token is left.

"Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference", arXiv:2405.05803, AAAI
2025. Needs no training. Later layers have no slots for visual tokens, neither in the prompt nor in their cache; text
keeps its positions (`positions="renumber"` counts the text anew, the paper's other variant). The layer is found once
for a model by `jtok calibrate`: the first one whose withdrawal changes the next token's distribution by less than eta.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.ops import schedule
from jtok.plan import Plan
from jtok.reducer import Memory
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.slots import LayerRule
from jtok.target import Target
from jtok.tokens import Tokens

#: The layer and the depth of the paper's model, LLaVA-1.5-7B.
LAYER, DEPTH = 15, 32

#: Where the search begins.
FIRST = 5


@dataclasses.dataclass(frozen=True)
class Withdraw(LayerRule):
    """All visual tokens leave before the one layer of `exits`."""

    exits: tuple[int, ...]

    def leave(self, tokens: Tokens, s: Signals, memory: Memory, layer: int) -> None:
        return None


def divergence(withdrawn: Float[Array, "B V"], full: Float[Array, "B V"]) -> Float[Array, " B"]:
    """KL(withdrawn || full) in nats of the distributions that two sets of logits give."""
    p, q = jax.nn.log_softmax(withdrawn, -1), jax.nn.log_softmax(full, -1)
    return jnp.sum(jnp.exp(p) * (p - q), -1)


def divergences(logits: Callable[[Plan], Float[Array, "B V"]], depth: int, first: int) -> Float[np.ndarray, "B layers"]:
    """KL of withdrawal before every layer from `first` on; `logits` are a model's after the prompt, under a plan."""
    full = logits(Plan())
    each = [divergence(logits(Plan(layers=Withdraw((layer,)))), full) for layer in range(first, depth)]
    return np.stack([np.asarray(kl) for kl in each], 1)


def first_layer(kl: Float[np.ndarray, "samples layers"], first: int, eta: float) -> int:
    """The first layer whose mean KL is at most eta, even if a later one exceeds it. Raises UserError if none is."""
    mean = np.mean(kl, 0)
    enough = np.flatnonzero(mean <= eta)
    if not enough.size:
        raise UserError(
            f"vtw finds no layer with a divergence of at most eta={eta:g}; the least is {mean.min():.2g}, before layer "
            f"{first + int(mean.argmin())}: give a larger eta."
        )
    return first + int(enough[0])


def calibrate(model: Any, batches: Iterable[Any], eta: float = 0.003, first: int | None = None) -> dict[str, Any]:
    """{"layer": the first layer that meets eta}, by the mean over all prompts.

    eta: divergence in nats; the paper has 0.003 (7B), 0.0005 (13B) and 0.0001 (LLaVA-1.6-7B). first: where the search
    begins (default 5, as the paper's; 1 in models of at most 5 layers). Raises UserError if no layer meets eta, and for
    a `first` that the model does not have.
    """
    depth = model.config.target().layers
    first = (FIRST if depth > FIRST else 1) if first is None else first
    _check_layer(first, depth)

    def rows(inputs: Any) -> np.ndarray:
        def logits(plan: Plan) -> Array:
            return dataclasses.replace(model, plan=plan).read(inputs, max_new_tokens=0).logits

        return divergences(logits, depth, first)

    return {"layer": first_layer(np.concatenate([rows(inputs) for inputs in batches]), first, eta)}


def _check_layer(layer: int, depth: int) -> None:
    if not 0 < layer < depth:
        raise UserError(f"vtw cannot withdraw before layer {layer}: choose 1 to {depth - 1} of the language model.")


@method(
    name="vtw",
    title="Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference",
    paper="arXiv:2405.05803, AAAI 2025",
    family="vlm-decoder",
    training="none",
    assignment="none",
    site="before one layer in the middle of the language model",
    idea="withdraw all visual tokens from deep layers",
    claims=(Claim("MLLMs of the paper", "computation saved, at least", 40, metric="computation saved (%)"),),
    calibrate=calibrate,
)
def plan(target: Target, layer: int | None = None) -> Plan:
    """layer: the first one without visual tokens (default: 15 of 32, the paper's, at the same share of other depths).

    Raises UserError for a layer that the language model does not have.
    """
    if target.layers < 2:
        raise UserError("vtw needs a language model of two layers or more: load a model that has one.")
    layer = schedule.blocks_at((LAYER,), DEPTH, target.layers)[0] if layer is None else layer
    _check_layer(layer, target.layers)
    return Plan(layers=Withdraw((layer,)))
