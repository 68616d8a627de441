"""What every reduction of a vision-language model must satisfy, as functions of a model and a batch.

The *free oracle* needs no reference code: a pruner that drops tokens before the decoder and lets the others keep their
positions gives the logits of the unreduced model to which the dropped tokens are hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok.models.vlm.arrange import Inputs
from jtok.models.vlm.model import VLM
from jtok.models.vlm.network import PrefillOutput
from jtok.plan import Plan
from jtok.reducer import Reducer
from jtok.sites import LLM_INPUT

#: Between these sites and the decoder tokens do not attend to each other: masking there is the same as dropping.
BEHIND_TOWER = ("tower.output", "projector", "llm.input")


@dataclasses.dataclass(frozen=True)
class Watch(Reducer):
    """Changes nothing and remembers what it was shown."""

    reads: tuple[str, ...] = ()
    observes = True

    def __call__(self, tokens, signals, memory):
        values = {name: getattr(signals, name) for name in self.reads} | {"x": tokens.x, "position": tokens.position}
        return tokens, {**memory, "watch": values}


@dataclasses.dataclass(frozen=True, eq=False)
class Hide(Reducer):
    """Drops nothing: patches [rows, N0] that are not `kept` become invalid, so that nothing attends to them."""

    kept: np.ndarray

    def __call__(self, tokens, signals, memory):
        special = jnp.ones((len(self.kept), tokens.special), bool)
        return tokens.replace(valid=tokens.mask() & jnp.concatenate([special, self.kept], 1)), memory


def before_decoder(plan: Plan) -> bool:
    """Whether a plan acts only before the decoder's layers, with the model's own projector."""
    return plan.projector is None and not any(site.stage == "llm" and site != LLM_INPUT for site in plan.sites)


def gentle(model: VLM) -> VLM:
    """The model with smaller weights, so that logits are of order one and attention does not magnify rounding."""

    def smaller(path, leaf):
        name = jax.tree_util.keystr(path)
        return leaf * 0.3 if "kernel" in name or "head" in name else leaf

    return dataclasses.replace(model, params=jax.tree_util.tree_map_with_path(smaller, model.params))


def row_keys(rows: int, seed: int = 0) -> jax.Array:
    """One PRNG key a row."""
    return jax.random.split(jax.random.key(seed), rows)


def kept_patches(output: PrefillOutput) -> np.ndarray:
    """Which patches [B,F] a token that the decoder was given still holds."""
    visual = output.sequence.visual
    owner, live = np.asarray(visual.owner), np.asarray(visual.mask())
    return (owner >= 0) & np.take_along_axis(live, np.maximum(owner, 0), 1)


def hide(inputs: Inputs, kept: np.ndarray) -> Inputs:
    """The inputs in which the features [B,F] that are not `kept` are invalid after the projector."""
    places = dataclasses.replace(inputs.places, inside=np.asarray(inputs.places.inside) & kept)
    return dataclasses.replace(inputs, places=places)


def hiding(plan: Plan, stages: Mapping[str, Any]) -> Plan:
    """The plan that masks, site by site, what `plan` dropped, given its `stages`."""
    return dataclasses.replace(plan, sites={s: Hide(np.asarray(stages[str(s)].owner) >= 0) for s in plan.sites})


def dropped_and_hidden(full: VLM, reduced: VLM, inputs: Inputs, keys: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B,V] of the reduced model, and of the full one with the same patches hidden, where they were dropped.

    `full` is the same model without a plan: one compiled program then serves all methods placed after the tower.
    The plan must leave tokens in their order and place: positions `restore`, or `keep` from a method that sorts.
    """
    output = reduced.read(inputs, max_new_tokens=1, key=keys)
    if set(map(str, reduced.plan.sites)) <= set(BEHIND_TOWER):
        hidden = full.read(hide(inputs, kept_patches(output)), max_new_tokens=1, key=keys)
    else:
        hidden = dataclasses.replace(full, plan=hiding(reduced.plan, output.stages)).read(
            inputs, max_new_tokens=1, key=keys
        )
    return np.asarray(output.logits), np.asarray(hidden.logits)
