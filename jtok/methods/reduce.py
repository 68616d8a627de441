"""Places a method in a model."""

from __future__ import annotations

import dataclasses
import os
import warnings
from typing import Any

from jtok.checkpoints.reducer_files import load_reducer
from jtok.errors import UserError
from jtok.methods.catalogue import make_plan
from jtok.models.vlm.model import VLM
from jtok.plan import Plan


class UntrainedWarning(UserWarning):
    """The learned parameters of a method are still random."""


def reduce(
    model: VLM,
    method: str | Plan,
    *,
    tokens: int | None = None,
    keep: float | None = None,
    weights: str | os.PathLike | None = None,
    **options: Any,
) -> VLM:
    """The model with a method placed in it, after any that it already has; parameters are shared.

    method: a name, several joined by `+`, or a plan. tokens: visual tokens to leave per crop (or `keep`, their share).
    Where images may have any size, the plan is made again for the largest image or frame of a batch, and `tokens`
    refers to that one. weights: file with the parameters of a learned method (see `load_reducer`), which otherwise
    starts from random ones, with a warning. Raises UserError for an unknown method or option, for more tokens than
    there are, for methods that cannot share a model, and for a file that does not fit.
    """
    target = model.plan.after(model.config.target())
    if isinstance(method, Plan):
        plan = method
    else:
        amount = {} if tokens is None else {"tokens": _counted(tokens, target.patches, model.config.any_size)}
        made = make_plan(method, target, keep, **options, **amount)
        plan = model.config.fit(_asking(made, tokens))
    plan = model.plan + plan
    model.config.check(plan)
    if weights is not None:
        plan = plan.with_params(load_reducer(weights, plan), trained=True)
    warn_if_untrained(plan)
    return dataclasses.replace(model, plan=plan)


def warn_if_untrained(plan: Plan) -> None:
    """Warns if the learned parameters of a plan are still random."""
    if plan.untrained:
        warnings.warn(UntrainedWarning(untrained_text(plan, "weights=")), stacklevel=3)


def untrained_text(plan: Plan, how: str) -> str:
    """The sentence that says that a plan is untrained; `how`: what loads parameters."""
    return f"{plan.name} is a learned method and its parameters are random: train it, or load them ({how})."


def _counted(tokens: int, patches: int, any_size: bool) -> int:
    if tokens < 1 or tokens > patches and not any_size:
        raise UserError(f"{tokens} tokens are asked for; the model has {patches}: choose between 1 and that many.")
    return min(tokens, patches)


def _asking(plan: Plan, tokens: int | None) -> Plan:
    """The plan whose recipe asks for the full number of tokens, which an image of another size may have."""
    if tokens is None or plan.make is None:
        return plan
    options = tuple((name, tokens if name == "tokens" else value) for name, value in plan.make.options)
    return dataclasses.replace(plan, make=dataclasses.replace(plan.make, options=options))
