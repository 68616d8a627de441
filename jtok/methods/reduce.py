"""Places a method in a model."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from jtok.checkpoints.reducer_files import load_reducer
from jtok.errors import UserError
from jtok.methods.catalogue import find, make_plan
from jtok.models.vlm.model import VLM, Recipe
from jtok.plan import Plan, Target


def reduce(
    model: VLM,
    method: str,
    *,
    tokens: int | None = None,
    keep: float = 0.5,
    weights: str | os.PathLike | None = None,
    **options: Any,
) -> VLM:
    """The model with a method standing in it; parameters are shared.

    tokens: visual tokens of a crop that shall be left (else `keep`, their share). Where images may have any size, the
    plan is made anew for the largest image or frame of a batch, and the tokens are counted of that one. weights: file
    with the parameters of a learned method (see `load_reducer`), which else starts at random. Raises UserError for an
    unknown method or option, for more tokens than there are, and for a file that does not fit.
    """
    any_size = model.config.any_size
    target = model.config.target()
    if tokens is not None and (tokens < 1 or tokens > target.patches and not any_size):
        raise UserError(f"{tokens} tokens are asked for; the model has {target.patches}: ask for 1 to that many.")

    def make(target: Target) -> Plan:
        if tokens is None:
            return model.config.fit(make_plan(method, target, keep, **options))
        count = min(tokens, target.patches)
        exact = {"tokens": count} if method != "none" and "tokens" in find(method).options else {}
        return model.config.fit(make_plan(method, target, count / target.patches, **options, **exact))

    plan = make(target)
    model.config.check(plan)
    if weights is not None:
        plan = plan.with_params(load_reducer(weights, plan))
    return dataclasses.replace(model, plan=plan, recipe=Recipe(plan, make) if any_size else None)
