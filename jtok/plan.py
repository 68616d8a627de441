"""A plan says where reducers stand in a model. A reducer makes a token set smaller."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from flax import nnx
from jaxtyping import Array, Int

from jtok.errors import UserError
from jtok.signals import KNOWN, Signals
from jtok.tokens import Tokens

Memory = dict[str, Any]

#: What a language model takes for order and positions of visual tokens that were reduced; see `Plan`.
Positions = Literal["keep", "renumber", "restore", "order"]


class Reducer:
    """Makes a token set smaller (or only observes it) at a site.

    A training-free reducer is a frozen dataclass, a learned one an `nnx.Module`; both are called alike:
    `(tokens, signals, memory) -> (tokens, memory)`, pure, batched, with a static number of output slots. `memory` is a
    dict of arrays that the plan hands from site to site; a method keeps its entry under its own name and returns a
    new dict rather than changing the one it was given.
    """

    #: Signals that the model must compute for this reducer (keys of `jtok.signals.KNOWN`).
    reads: tuple[str, ...] = ()

    def count(self, patches: int) -> int:
        """Patch slots left after this site (a cap, where the number depends on the image); special tokens excluded."""
        return patches

    def __call__(self, tokens: Tokens, signals: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        raise TypeError(f"{type(self).__name__} must define __call__(tokens, signals, memory).")


@dataclasses.dataclass(frozen=True)
class Target:
    """What a plan is made for: the shape of the model it will stand in."""

    depth: int  # blocks
    grid: tuple[int, int]  # patches (rows, columns)
    width: int  # features
    heads: int = 1
    special: int = 1  # leading special tokens
    classes: int = 0  # output classes, for methods with auxiliary classifiers; 0 = none
    has_class: bool = True  # the first special token is a class token
    layers: int = 0  # layers of the language model behind the tower; 0 = there is none
    language_width: int = 0  # features of the language model

    @property
    def patches(self) -> int:
        """Patches at the input."""
        return self.grid[0] * self.grid[1]


def at_blocks(
    blocks: Iterable[int], where: str, reducers: Iterable[Reducer], prefix: str = "tower"
) -> dict[str, Reducer]:
    """Sites for a staged method: reducer i stands at `where` (input, after_attention, output) of the i-th block."""
    return {f"{prefix}.block.{b}.{where}": r for b, r in zip(blocks, reducers, strict=True)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Site -> reducer, in the order in which the sites are reached.

    sites: names such as `tower.block.3.input`, `tower.block.3.after_attention`, `tower.block.3.output`, `tower.output`.
    grid: the image is resized to this many patches before the tower (downsampling baselines); None = as it is.
    positions: what a language model takes for positions of what is left: `keep` those in the whole prompt, with gaps,
    or `renumber`, both in the order in which the method left the tokens; `restore` puts them in the order of the prompt
    and keeps (GAP, arXiv:2506.21873), `order` puts them in order and renumbers.
    projector: stands in for the model's own (`jtok.layers.projector`), giving `projector_count` tokens.
    variants: the plans over whose losses a training step takes the mean, `(plan, key) -> plans` (see `for_training`).
    embed: gives the embeddings [B,E] of questions that reducers read as `text_embedding`.
    objective: extra training losses, `(plan, output, teacher_output, batch) -> dict of scalars`, called with the plan
    that holds the current parameters; needs_teacher says whether the unreduced model, as it was before training, is to
    be run beside for distillation (else teacher_output is None).
    """

    sites: Mapping[str, Reducer] = dataclasses.field(default_factory=dict)
    name: str = "none"
    grid: tuple[int, int] | None = None
    positions: Positions = "keep"
    projector: Callable[..., Any] | None = None
    projector_count: int | Int[Array, ""] | None = None  # an array only in training, where it may be drawn
    variants: Callable[[Plan, Array], Sequence[Plan]] | None = None
    embed: Callable[[Sequence[str]], Array] | None = None
    objective: Callable[..., dict[str, Any]] | None = None
    needs_teacher: bool = False

    def at(self, site: str) -> Reducer | None:
        """The reducer at a site, if any."""
        return self.sites.get(site)

    def check(self, known: Iterable[str]) -> None:
        """Raises UserError for a site the model does not have, or a signal that does not exist."""
        known = list(known)
        for site, reducer in self.sites.items():
            if site not in known:
                near = difflib.get_close_matches(site, known, 3)
                hint = f"; did you mean {' or '.join(near)}?" if near else f" (it has {known[0]} ... {known[-1]})."
                raise UserError(f"the model has no site '{site}'{hint}")
            for name in reducer.reads:
                if name not in KNOWN:
                    raise UserError(f"{type(reducer).__name__} reads '{name}'; known signals are {', '.join(KNOWN)}.")

    def part(self, prefix: str) -> Plan:
        """What stands in one part of a model: the sites whose names begin with `prefix`."""
        return dataclasses.replace(self, sites={s: r for s, r in self.sites.items() if s.startswith(f"{prefix}.")})

    def params(self) -> dict[str, Any]:
        """Trainable parameters of what is learned: site (or "projector") -> nested dict of arrays.

        Raises UserError if both the projector and a reducer behind it are learned: their parameters share a name.
        """
        learned = {site: r for site, r in self.sites.items() if isinstance(r, nnx.Module)}
        if self.projector is not None and "projector" in learned:
            raise UserError("a learned projector and a learned reducer at 'projector' cannot stand in one plan.")
        if self.projector is not None:
            learned["projector"] = self.projector
        return {site: nnx.to_pure_dict(nnx.state(r, nnx.Param)) for site, r in learned.items()}

    def with_params(self, params: Mapping[str, Any]) -> Plan:
        """This plan with what is learned holding other parameters (as returned by `params`)."""

        def holding(site: str, learned: nnx.Module) -> nnx.Module:
            graphdef, state = nnx.split(learned)
            nnx.replace_by_pure_dict(state, params[site])
            return nnx.merge(graphdef, state)

        sites = {
            site: holding(site, r) if site in params and isinstance(r, nnx.Module) else r
            for site, r in self.sites.items()
        }
        projector = self.projector
        if projector is not None and "projector" in params:
            projector = holding("projector", projector)
        return dataclasses.replace(self, sites=sites, projector=projector)

    def for_training(self, key: Array) -> tuple[Plan, ...]:
        """The plans of a training step: its loss is the mean of theirs. `key` is the step's; most methods give one."""
        return (self,) if self.variants is None else tuple(self.variants(self, key))

    def counts(self, patches: int) -> list[tuple[str, int, int]]:
        """(site, patch slots in, patch slots out) along the plan, known before anything is traced."""
        rows = []
        if self.grid is not None:
            rows.append(("input", patches, self.grid[0] * self.grid[1]))
            patches = rows[0][2]
        stages = [(site, reducer.count) for site, reducer in self.sites.items()]
        if self.projector_count is not None:
            before = sum(site.startswith("tower.") for site in self.sites)
            stages.insert(before, ("projector", lambda _: self.projector_count))
        for site, count in stages:
            out = count(patches)
            rows.append((site, patches, out))
            patches = out
        return rows
