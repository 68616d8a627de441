"""The catalogue: every method by name, with what a reader wants to know before opening its file."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

from jtok.errors import UserError
from jtok.plan import Plan, Positions, Target

Family = Literal["baseline", "vit-prune", "vit-merge", "vit-learned", "vlm-encoder", "vlm-decoder", "vlm-projector"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A number that the paper (or its repository) reports: what on what, and at which cost."""

    model: str
    setting: str
    value: float
    metric: str = "ImageNet-1k top-1 (%)"
    gmacs: float | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """One entry of the catalogue."""

    name: str
    title: str  # the paper's title
    paper: str  # arXiv id, venue
    family: Family
    training: Literal["none", "optional", "required"]
    assignment: Literal["hard", "soft", "none"]  # what becomes of the patches: merged hard, mixed, or dropped
    reads: tuple[str, ...]
    site: str  # where it stands, in words
    idea: str  # five to ten words
    plan: Callable[..., Plan]
    claims: tuple[Claim, ...] = ()
    uses_position: bool = False  # the outcome depends on where patches lie, not only on their content
    any_tower: bool = False  # reads class attention only where there is a class token

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options of `plan` beyond the target and the keep ratio, with their defaults."""
        parameters = list(inspect.signature(self.plan).parameters.values())[1:]
        return {p.name: p.default for p in parameters if p.name not in ("keep", "rngs")}


_METHODS: dict[str, Method] = {}


def method(**facts: Any) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """Enters a method's `plan(target, keep=..., **options) -> Plan` into the catalogue; see `Method` for the facts."""

    def enter(plan: Callable[..., Plan]) -> Callable[..., Plan]:
        entry = Method(plan=plan, **facts)
        if entry.name in _METHODS and _METHODS[entry.name].plan.__module__ != plan.__module__:
            raise UserError(f"two methods are called '{entry.name}': rename one of them.")
        _METHODS[entry.name] = entry
        return plan

    return enter


@cache
def _load() -> None:
    from jtok import methods

    for module in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"jtok.methods.{module.name}")


def catalogue() -> dict[str, Method]:
    """All methods by name, in alphabetical order."""
    _load()
    return dict(sorted(_METHODS.items()))


def find(name: str) -> Method:
    """The method of that name; raises UserError naming the nearest ones."""
    methods = catalogue()
    if name in methods:
        return methods[name]
    near = difflib.get_close_matches(name, methods, 3, 0.4)
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
    entries = catalogue().values()
    fits = [m for m in entries if m.any_tower or "class_attention" not in m.reads]
    return [m.name for m in fits if m.family.startswith("vlm" if language else ("vit", "baseline", "vlm-encoder"))]
