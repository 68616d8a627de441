"""Every method by name, and the plan that it makes for a model."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from functools import cache
from typing import Any, get_args

import jtok.methods
from jtok.errors import UserError
from jtok.plan import Plan, Positions, Target
from jtok.registry import METHODS, Method


@cache
def _load() -> None:
    for module in pkgutil.walk_packages(jtok.methods.__path__, "jtok.methods."):
        importlib.import_module(module.name)


def methods() -> dict[str, Method]:
    """All methods by name, in alphabetical order."""
    _load()
    return dict(sorted(METHODS.items()))


def find(name: str) -> Method:
    """The method of that name; raises UserError naming the nearest ones."""
    entries = methods()
    if name in entries:
        return entries[name]
    near = difflib.get_close_matches(name, entries, 3, 0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "`jtok list` shows them all."
    raise UserError(f"there is no method called '{name}'; {hint}")


def make_plan(
    name: str, target: Target, keep: float = 0.5, *, positions: Positions | None = None, **options: Any
) -> Plan:
    """The plan of a method for a target model. `keep` is the share of patches left after the last site, in (0, 1].

    positions: what a language model takes for positions of what is left, in place of the method's own choice (see
    `Plan`). Raises UserError for an unknown method or option, or a keep ratio outside (0, 1].
    """
    if positions is not None and positions not in get_args(Positions):
        raise UserError(f"positions={positions} is not known; choose {', '.join(get_args(Positions))}.")
    if name == "none":
        return Plan()
    entry = find(name)
    if not 0 < keep <= 1:
        raise UserError(f"the keep ratio is {keep}; it must be above 0 and at most 1.")
    for option in options:
        if option not in entry.options:
            near = difflib.get_close_matches(option, entry.options, 2) or list(entry.options)
            known = f"it takes {', '.join(near)}." if near else "it takes none."
            raise UserError(f"{name} has no option '{option}'; {known}")
    where = {"vlm-decoder": "in", "vlm-projector": "before"}.get(entry.family)
    if where and not target.layers:
        raise UserError(
            f"{name} stands {where} a language model, and this tower has none behind it: load one that has."
        )
    plan = dataclasses.replace(entry.plan(target, keep=keep, **options), name=name)
    if not target.has_class and any("class_attention" in r.reads for r in plan.sites.values()):
        fits = ", ".join(_without_class(bool(target.layers)))
        raise UserError(f"{name} reads class-token attention, but this tower has no class token; use {fits}.")
    return plan if positions is None else dataclasses.replace(plan, positions=positions)


def _without_class(language: bool) -> list[str]:
    """Methods that run on towers without a class token, those for vision-language models if `language`."""
    entries = methods().values()
    fits = [m for m in entries if m.any_tower or "class_attention" not in m.reads]
    return [m.name for m in fits if m.family.startswith("vlm" if language else ("vit", "baseline", "vlm-encoder"))]
