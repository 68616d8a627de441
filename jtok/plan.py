"""A plan says where reducers are placed in a model, and what else a method changes there."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
from flax import nnx
from jaxtyping import Array, Int

from jtok.errors import UserError
from jtok.learned import Emptied, modules, put
from jtok.reducer import Compose, Reducer
from jtok.signals import SIGNALS
from jtok.sites import PROJECTOR, Site, Where
from jtok.slots import AttentionRule, CachePolicy, DecodingRule, InputRule, LayerRule, Projector, Training
from jtok.target import Target

#: The order and positions that a language model gives to reduced visual tokens; see `Plan`.
Positions = Literal["keep", "renumber", "restore", "order"]

#: Slots that hold a single object, which may be learned.
SLOTS = ("inputs", "projector", "attention", "layers", "cache", "decoding")

_KINDS = {
    "inputs": InputRule,
    "attention": AttentionRule,
    "layers": LayerRule,
    "cache": CachePolicy,
    "decoding": DecodingRule,
}


def at_blocks(
    blocks: Iterable[int], where: Where, reducers: Iterable[Reducer], stage: str = "tower"
) -> dict[Site, Reducer]:
    """Sites for a staged method: reducer i is placed at `where` of the i-th block."""
    return {Site(stage, block, where): reducer for block, reducer in zip(blocks, reducers, strict=True)}


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Site -> reducer, in forward order, and the slots of `jtok.slots`.

    sites: keys may be written as strings (`tower.block.3.input`, `tower.output`, `projector`, `llm.layer.2.input`).
    positions: the positions that a language model gives to the tokens left: `keep` those of the unreduced prompt, with
    gaps, or `renumber`, both in the order in which the method left the tokens; `restore` sorts them in prompt order and
    keeps positions (GAP, arXiv:2506.21873), `order` sorts and renumbers. None: no preference, treated as `keep`.
    projector: replaces the model's own, giving `projector_count` tokens.
    embed: computes the embeddings [B,E] of questions that reducers read as `text_embedding`.
    target: what it was made for; make: makes it again for another target (see `for_grid`). asked: the amount requested
    of the method, as text. trained: learned parts hold trained parameters.

    Plans add (`visionzip + fastv`), are hashable, and are pytrees whose leaves are the learned parameters, so that they
    may be arguments of jitted functions. Raises UserError for a string that is not a site and for a site named twice.
    """

    sites: Mapping[Site, Reducer] = dataclasses.field(default_factory=dict)
    name: str = "none"
    positions: Positions | None = None
    inputs: InputRule | None = None
    projector: Projector | None = None
    projector_count: int | Int[Array, ""] | None = None  # an array only in training, where it may be drawn
    attention: AttentionRule | None = None
    layers: LayerRule | None = None
    cache: CachePolicy | None = None
    decoding: DecodingRule | None = None
    training: Training = Training()
    embed: Callable[[Sequence[str]], Array] | None = None
    target: Target | None = None
    make: Callable[[Target], Plan] | None = None
    asked: str = ""
    trained: bool = False

    def __post_init__(self):
        sites = sorted(((Site.parse(site), reducer) for site, reducer in self.sites.items()), key=lambda item: item[0])
        for (site, _), (after, _) in zip(sites, sites[1:], strict=False):
            if site == after:
                raise UserError(f"the site {site} is named twice: compose both reducers at it.")
        object.__setattr__(self, "sites", types.MappingProxyType(dict(sites)))

    def at(self, site: Site | str) -> Reducer | None:
        """The reducer at a site, if any."""
        return self.sites.get(Site.parse(site))

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches that the image is resized to before the tower; None = not resized."""
        return None if self.inputs is None else self.inputs.grid

    @property
    def placed(self) -> Positions:
        """`positions`, with its default."""
        return self.positions or "keep"

    @property
    def reads(self) -> tuple[str, ...]:
        """Signals that any part of the plan reads, in the order of `SIGNALS`."""
        parts = [*self.sites.values(), *(part for part in (self.layers, self.cache, self.decoding) if part is not None)]
        reads = {name for part in parts for name in part.reads}
        return tuple(name for name in SIGNALS if name in reads)

    @property
    def needs(self) -> tuple[str, ...]:
        """What a model must have for the signals of this plan: a class token, text, crops ..."""
        return tuple(dict.fromkeys(need for name in self.reads for need in SIGNALS[name].needs))

    @property
    def stages(self) -> tuple[str, ...]:
        """Where it acts: of `inputs`, `tower`, `projector`, `llm`, `cross`, `cache` and `decoding`, in this order."""
        acts = {site.stage for site in self.sites}
        acts |= {"llm"} if self.attention or self.layers else set()
        acts |= {name for name in ("inputs", "projector", "cache", "decoding") if getattr(self, name) is not None}
        known = ("inputs", "tower", "projector", "llm", "cross", "cache", "decoding")
        return tuple([name for name in known if name in acts] + sorted(acts - set(known)))

    @property
    def adaptive(self) -> bool:
        """Whether `counts` are caps, the actual numbers depending on the image."""
        return any(r.adaptive for r in self.sites.values()) or (self.inputs is not None and self.inputs.adaptive)

    @property
    def untrained(self) -> bool:
        """Whether it has learned parts with random parameters."""
        return not self.trained and bool(self._learned())

    def check(self, known: Iterable[Site | str], slots: Collection[str] = ("inputs",)) -> None:
        """Raises UserError for a site that the model lacks or reaches in another order, and for unknown signals.

        known: the model's sites in forward order. slots: those of `SLOTS` that it supports.
        """
        known = [Site.parse(site) for site in known]
        place = {site: i for i, site in enumerate(known)}
        self._check_kinds()
        for slot in SLOTS:
            if getattr(self, slot) is not None and slot not in slots:
                has = f"it has {', '.join(slots)}" if slots else "it has none"
                raise UserError(f"the plan '{self.name}' fills the slot '{slot}', which this model lacks ({has}).")
        sites = list(self.sites)
        for site in sites:
            if site not in place:
                close = difflib.get_close_matches(str(site), map(str, known), 3)
                hint = f"; did you mean {' or '.join(close)}?" if close else f" (it has {known[0]} ... {known[-1]})."
                raise UserError(f"the model has no site '{site}'{hint}")
        for first, second in zip(sites, sites[1:], strict=False):
            if place[first] > place[second]:
                raise UserError(f"the model reaches {second} before {first}: list its sites in that order.")
        for reducer in self.sites.values():
            for name in reducer.reads:
                if name not in SIGNALS:
                    who = type(reducer).__name__
                    raise UserError(f"{who} reads '{name}'; known signals are {', '.join(SIGNALS)}.")

    def _check_kinds(self) -> None:
        """Raises UserError for an object in a slot of another kind."""
        parts = [(str(site), reducer, Reducer) for site, reducer in self.sites.items()]
        parts += [(slot, getattr(self, slot), kind) for slot, kind in _KINDS.items() if getattr(self, slot) is not None]
        for name, part, kind in parts:
            if not isinstance(part, kind):
                raise UserError(f"{type(part).__name__} cannot be placed at '{name}', which takes a {kind.__name__}.")

    def part(self, stage: str) -> Plan:
        """The part of the plan in one stage of a model; the tower's includes the input rule."""
        sites = {site: reducer for site, reducer in self.sites.items() if site.stage == stage}
        return Plan(sites, name=self.name, inputs=self.inputs if stage == "tower" else None)

    def for_grid(self, grid: tuple[int, int]) -> Plan:
        """This plan, or the same method's for images of another grid, with the same learned parameters.

        Raises UserError where it was made for another grid and cannot be made again.
        """
        if self.target is None or tuple(grid) == self.target.grid:
            return self
        if self.make is None:
            made, wanted = ("x".join(map(str, g)) for g in (self.target.grid, grid))
            raise UserError(
                f"the plan '{self.name}' was made for a grid of {made} patches, this image has {wanted}: make one "
                "for it, with `target=model.config.target(image=...)`."
            )
        return self.make(dataclasses.replace(self.target, grid=tuple(grid))).with_params(self.params())

    def for_pixels(self, pixels: Any, grid: tuple[int, int]) -> Plan:
        """This plan with `inputs` fitted to patches [B,N,V] that are known before tracing."""
        return self if self.inputs is None else dataclasses.replace(self, inputs=self.inputs.fitted(pixels, grid))

    def _learned(self) -> dict[str, nnx.Module]:
        """Learned modules by the name of their site or slot; parts of a composition by path."""
        if self.projector is not None and modules(self.at(PROJECTOR)):
            raise UserError("a learned projector and a learned reducer at 'projector' cannot share a plan: use one.")
        parts = self._parts()
        return {f"{name}{path}": module for name, part in parts.items() for path, module in modules(part).items()}

    def _parts(self) -> dict[str, Any]:
        """Everything that may contain learned modules, by name."""
        parts = {str(site): reducer for site, reducer in self.sites.items()}
        return parts | {slot: getattr(self, slot) for slot in SLOTS if getattr(self, slot) is not None}

    def _with(self, new: Mapping[str, Any], **changes: Any) -> Plan:
        """The plan with the modules that `_learned` names replaced."""
        parts = {name: put(part, new, name) for name, part in self._parts().items()}
        slots = {slot: parts[slot] for slot in SLOTS if getattr(self, slot) is not None}
        # a projector goes by the name of its site, where nothing else is learned in that case
        sites = {
            site: reducer if site == PROJECTOR and self.projector is not None else parts[str(site)]
            for site, reducer in self.sites.items()
        }
        return dataclasses.replace(self, sites=sites, **slots, **changes)

    def params(self) -> dict[str, Any]:
        """Trainable parameters: site (or slot) -> nested dict of arrays."""
        return {name: nnx.to_pure_dict(nnx.state(module, nnx.Param)) for name, module in self._learned().items()}

    def with_params(self, params: Mapping[str, Any], trained: bool | None = None) -> Plan:
        """This plan with other parameters (in the form of `params`); `trained` marks them as trained or not."""

        def holding(name: str, module: nnx.Module) -> nnx.Module:
            graphdef, state = nnx.split(module)
            nnx.replace_by_pure_dict(state, params[name])
            return nnx.merge(graphdef, state)

        learned = {name: holding(name, module) for name, module in self._learned().items() if name in params}
        return self._with(learned, trained=self.trained if trained is None else trained)

    def for_training(self, key: Array) -> tuple[Plan, ...]:
        """The plans of a training step: its loss is the mean of theirs. `key` is the step's; most methods give one."""
        variants = self.training.variants
        return (self,) if variants is None else tuple(variants(self, key))

    def counts(self, patches: int) -> list[tuple[str, int, int]]:
        """(site, patch slots in, patch slots out) along the plan, known before tracing; see `adaptive`."""
        steps: list[tuple[Any, str, Callable[[int], int]]] = [
            (site, str(site), reducer.count) for site, reducer in self.sites.items()
        ]
        if self.projector_count is not None:
            steps.append((PROJECTOR, "projector", lambda _: self.projector_count))
            # the projector comes before a reducer of the same site
            steps.sort(key=lambda step: (step[0], step[0] in self.sites and step[2] == self.sites[step[0]].count))
        if self.layers is not None:
            steps += [(Site("llm", i, "input"), f"layers.{i}", lambda _: 0) for i in self.layers.exits[-1:]]
            steps.sort(key=lambda step: step[0])
        named = [(name, count) for _, name, count in steps]
        if self.inputs is not None:
            named.insert(0, ("input", self.inputs.count))
        if self.cache is not None:
            named.append(("cache", self.cache.count))
        rows = []
        for name, count in named:
            out = count(patches)
            rows.append((name, patches, out))
            patches = out
        return rows

    def after(self, target: Target) -> Target:
        """The target of a plan that comes after this one: fewer patches reach it."""
        rows = self.counts(target.patches)
        return dataclasses.replace(target, given=rows[-1][2]) if rows else target

    def __add__(self, other: Plan) -> Plan:
        """Both plans in one model; `other` comes second where they share a site, and its `positions` take precedence.

        Raises UserError where both fill the same slot.
        """
        if not isinstance(other, Plan):
            return NotImplemented
        for plan, rest in ((self, other), (other, self)):
            if not plan.sites and not plan.stages and plan.positions is None and plan.embed is None:
                return rest  # nothing is added
        slots = {}
        for slot in (*SLOTS, "projector_count", "embed"):
            mine, theirs = getattr(self, slot), getattr(other, slot)
            if mine is not None and theirs is not None and mine != theirs:
                label = slot.replace("_", " ")
                raise UserError(f"{self.name} and {other.name} both set the {label} of the model: use one of them.")
            slots[slot] = theirs if mine is None else mine
        sites = dict(self.sites)
        for site, reducer in other.sites.items():
            sites[site] = Compose(sites[site], reducer) if site in sites else reducer
        names = [plan.name for plan in (self, other) if plan.name != "none"]
        learned = [plan for plan in (self, other) if plan._learned()]
        return Plan(
            sites,
            name="+".join(names) or "none",
            positions=other.positions or self.positions,
            training=_train_both(self, other),
            target=self.target or other.target,
            make=_MakeBoth(self.make, other.make) if self.make and other.make else None,
            asked=", ".join(dict.fromkeys(plan.asked for plan in (self, other) if plan.asked)),
            trained=bool(learned) and all(plan.trained for plan in learned),
            **slots,
        )

    def tree_flatten(self):
        """(learned parameters and counts that are arrays, everything else)."""
        learned = {name: nnx.split(module) for name, module in self._learned().items()}
        drawn = isinstance(self.projector_count, jax.Array)
        bare = self._with({name: Emptied(graphdef) for name, (graphdef, _) in learned.items()})
        bare = dataclasses.replace(bare, projector_count=None) if drawn else bare
        return ({name: state for name, (_, state) in learned.items()}, self.projector_count if drawn else None), bare

    @classmethod
    def tree_unflatten(cls, bare: Plan, leaves) -> Plan:
        """Inverse of `tree_flatten`."""
        states, drawn = leaves
        emptied = {f"{n}{path}": e for n, part in bare._parts().items() for path, e in modules(part, Emptied).items()}
        plan = bare._with({name: nnx.merge(emptied[name].graphdef, state) for name, state in states.items()})
        return plan if drawn is None else dataclasses.replace(plan, projector_count=drawn)

    def _facts(self) -> tuple:
        """Everything that affects a compiled program; hashable once learned parameters are removed."""
        skip = ("sites", "asked", "trained")
        fields = (getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in skip)
        return tuple(self.sites.items()), *fields

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Plan) and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash(self._facts())


@dataclasses.dataclass(frozen=True)
class _MakeBoth:
    """Makes a sum of plans for another target: the second for what the first one leaves."""

    first: Callable[[Target], Plan]
    second: Callable[[Target], Plan]

    def __call__(self, target: Target) -> Plan:
        first = self.first(target)
        return first + self.second(first.after(target))


@dataclasses.dataclass(frozen=True)
class _BothObjectives:
    """The losses of two plans; losses of the same name are summed."""

    first: Callable[..., dict[str, Any]]
    second: Callable[..., dict[str, Any]]

    def __call__(self, *args: Any) -> dict[str, Any]:
        mine, theirs = self.first(*args), self.second(*args)
        return {name: mine.get(name, 0) + theirs.get(name, 0) for name in {**mine, **theirs}}


def _train_both(first: Plan, second: Plan) -> Training:
    a, b = first.training, second.training
    if a.variants and b.variants:
        raise UserError(f"{first.name} and {second.name} both train for many counts at once: use one of them.")
    objectives = [one.objective for one in (a, b) if one.objective is not None]
    objective = _BothObjectives(*objectives) if len(objectives) == 2 else next(iter(objectives), None)
    return Training(objective, a.needs_teacher or b.needs_teacher, a.variants or b.variants)
