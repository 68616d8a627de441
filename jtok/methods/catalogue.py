"""Every method by name, the plan it makes for a model, and the facts read off that plan."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

import jtok.methods
from jtok.errors import UserError
from jtok.plan import SLOTS, Plan, Positions
from jtok.registry import METHODS, Method
from jtok.target import Target

#: Ways to say how many tokens to leave; a request uses one of them.
AMOUNTS = ("keep", "tokens", "rates", "r", "counts", "average_tokens", "removals", "reduction")

#: The targets that facts are read off for: a tower alone, and one followed by a language model.
TOWER = Target(depth=12, grid=(24, 24), width=64, heads=2, classes=10, language_width=64)
LANGUAGE = dataclasses.replace(TOWER, layers=32)

#: Stages that a tower alone does not have.
_BEYOND = {"projector", "llm", "cross", "cache", "decoding"}


@cache
def _load() -> None:
    for module in pkgutil.walk_packages(jtok.methods.__path__, "jtok.methods."):
        importlib.import_module(module.name)


def methods() -> dict[str, Method]:
    """All methods by name, in alphabetical order."""
    _load()
    return dict(sorted(METHODS.items()))


def find(name: str) -> Method:
    """The method of that name; raises UserError naming the closest ones."""
    entries = methods()
    if name in entries:
        return entries[name]
    similar = difflib.get_close_matches(name, entries, 3, 0.4)
    hint = f"did you mean {' or '.join(similar)}?" if similar else "`jtok list` shows them all."
    raise UserError(f"there is no method called '{name}'; {hint}")


def takes_share(name: str) -> bool:
    """Whether `keep` can be asked of a method, or of one of several that are joined by `+`; `none` keeps everything."""
    return name != "none" and any(
        find(part).default_keep is not None or "keep" in find(part).options for part in name.split("+")
    )


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a method does, read off the plans it makes."""

    reads: tuple[str, ...]  # signals
    needs: tuple[str, ...]  # what a model must have: a class token, text ...
    stages: tuple[str, ...]  # where it acts in a vision-language model
    slots: tuple[str, ...]  # of `jtok.plan.SLOTS`
    adaptive: bool  # the number of tokens left depends on the image
    learned: bool  # it has parameters of its own
    alone: bool  # it runs on a tower without a language model


@cache
def facts(name: str) -> Facts:
    """The facts of a method, from its plans with default options."""
    entry = find(name)
    plan, tower = _plan_for(entry, LANGUAGE), _plan_for(entry, TOWER)
    alone = tower is not None and not _BEYOND.intersection(tower.stages)
    shown = tower if alone else plan
    plan = plan or shown  # some need an option when there is a language model
    without = _plan_for(entry, dataclasses.replace(TOWER if alone else LANGUAGE, has_class=False, special=0))
    if without is None:  # it refuses such a tower, whatever its signals need
        needs = tuple(dict.fromkeys(("class token", *shown.needs)))
    else:
        needs = tuple(n for n in shown.needs if n in without.needs)
    slots = tuple(slot for slot in SLOTS if getattr(plan, slot) is not None)
    return Facts(shown.reads, needs, plan.stages, slots, shown.adaptive, bool(shown.params()), alone)


def _plan_for(entry: Method, target: Target) -> Plan | None:
    try:
        return entry.plan(target)
    except UserError:
        return None


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """Makes the plan of a method, or of several joined by `+`, for a target."""

    name: str
    keep: float | None
    positions: Positions | None
    options: tuple[tuple[str, Any], ...]

    def __call__(self, target: Target) -> Plan:
        options = dict(self.options)
        if isinstance(options.get("tokens"), int):
            options["tokens"] = min(options["tokens"], target.patches)
        return make_plan(self.name, target, self.keep, positions=self.positions, **options)


def make_plan(
    name: str, target: Target, keep: float | None = None, *, positions: Positions | None = None, **options: Any
) -> Plan:
    """The plan of a method, or of several, for a target model: `visionzip+fastv` is both, one after the other.

    keep: the share of patches left after the last site, in (0, 1] (default: the method's own, usually 0.5). Every
    method also takes `tokens`, the number of patches left, instead; staged methods take `rates` and `r` as well, and
    `blocks` and `stages` (see `jtok.ops.schedule`).
    positions: the positions that a language model gives to the tokens left, overriding the method's choice (see
    `Plan`). Joined methods each apply the same request to the tokens that reach them; an option `fastv.layer` applies
    to one of them only.

    Raises UserError for an unknown method or option, a keep ratio outside (0, 1], more than one way of saying how many
    tokens to leave, and for methods that do not fit the model or each other.
    """
    if positions is not None and positions not in get_args(Positions):
        raise UserError(f"positions={positions} is not known; choose {', '.join(get_args(Positions))}.")
    if name == "none":
        return Plan()
    names, plan = name.split("+"), Plan()
    _check_options(names, options)
    for part in names:
        plan = plan + _make_one(
            find(part), plan.after(target), keep, _options_of(part, names, options), len(names) == 1
        )
    recipe = _Recipe(name, keep, positions, tuple((key, _frozen(value)) for key, value in sorted(options.items())))
    return dataclasses.replace(plan, positions=positions or plan.positions, target=target, make=recipe)


def _make_one(entry: Method, target: Target, keep: float | None, options: Mapping[str, Any], alone: bool) -> Plan:
    """One method's plan; `alone`: it is not joined to another."""
    asked = {"keep": keep, **{name: options.get(name) for name in AMOUNTS[1:]}}
    asked = {name: value for name, value in asked.items() if value is not None}
    if len(asked) > 1:
        both = " and ".join(f"{name}={value}" for name, value in asked.items())
        raise UserError(f"{entry.name} is asked for {both}, which say the same thing: give only one of them.")
    if "keep" in asked and not 0 < keep <= 1:
        raise UserError(f"the keep ratio is {keep}; it must be above 0 and at most 1.")
    amount, rest = dict(asked), {name: value for name, value in options.items() if name not in AMOUNTS}
    if "tokens" in asked and "tokens" not in entry.options:
        amount = {"keep": _share(asked["tokens"], target)}
    if asked and entry.default_keep is None and not entry.options.keys() & asked.keys():
        if alone:
            raise UserError(
                f"{entry.name} keeps no share of the tokens: omit {next(iter(asked))}, or join it to one that does."
            )
        amount = {}
    if not target.layers and not facts(entry.name).alone:
        where = "before" if "projector" in facts(entry.name).stages else "in"
        raise UserError(f"{entry.name} is placed {where} a language model, and this tower has none: load one that has.")
    plan = entry.plan(target, **amount, **rest)
    if "class token" in plan.needs and not target.has_class:
        fits = ", ".join(_without_class(bool(target.layers)))
        raise UserError(f"{entry.name} reads class-token attention, but this tower has no class token; use {fits}.")
    default = entry.default_keep
    said = ", ".join(f"{name} {value}" for name, value in asked.items()) or (f"keep {default}" if default else "")
    return dataclasses.replace(plan, name=entry.name, asked=said)


def _share(tokens: int, target: Target) -> float:
    if not isinstance(tokens, int) or not 1 <= tokens <= target.patches:
        raise UserError(
            f"{tokens} tokens are asked for; there are {target.patches} patches: choose between 1 and that many."
        )
    return tokens / target.patches


def _check_options(names: list[str], options: Mapping[str, Any]) -> None:
    """Raises UserError for an option that none of the methods takes."""
    entries = [find(name) for name in names]
    for option in options:
        part, _, bare = option.rpartition(".")
        if part and part not in names:
            raise UserError(f"the option '{option}' is for {part}, and the methods are {', '.join(names)}.")
        known = {name for entry in entries if part in ("", entry.name) for name in entry.options} | {"tokens"}
        if bare not in known:
            similar = difflib.get_close_matches(bare, known, 2) or sorted(known)
            hint = f"it takes {', '.join(similar)}." if similar else "it takes none."
            raise UserError(f"{part or '+'.join(names)} has no option '{bare}'; {hint}")


def _options_of(part: str, names: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one of several methods: those it takes, and those addressed to it by name."""
    known = {*find(part).options, "tokens"}
    shared = {name: value for name, value in options.items() if "." not in name and name in known}
    addressed = {name.rpartition(".")[2]: value for name, value in options.items() if name.startswith(f"{part}.")}
    return {**shared, **addressed}


def _frozen(value: Any) -> Any:
    """Lists and dicts as tuples, so that they can be hashed."""
    if isinstance(value, Mapping):
        return tuple(sorted((name, _frozen(item)) for name, item in value.items()))
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _without_class(language: bool) -> list[str]:
    """Methods that run on towers without a class token; with `language`, on those followed by a language model."""
    entries = {name: facts(name) for name in methods()}
    return [name for name, f in entries.items() if "class token" not in f.needs and (language or f.alone)]
