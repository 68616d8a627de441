"""The catalogue: every method by name, with what a reader should know before opening its file."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol, get_args, get_type_hints

from jtok.errors import UserError
from jtok.plan import Plan

Family = Literal[
    "baseline", "vit-prune", "vit-merge", "vit-learned", "vlm-encoder", "vlm-decoder", "vlm-projector",
    "attention", "cache", "decoding",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Claim:
    """A number reported by the paper (or its repository): model, setting, value and cost."""

    model: str
    setting: str
    value: float
    metric: str = "ImageNet-1k top-1 (%)"
    gmacs: float | None = None


class Calibrate(Protocol):
    """Runs a model over samples and returns options of the method's plan, numbers and lists, for `jtok calibrate`.

    model: an unreduced `jtok.VLM`. batches: its inputs, as `model.read` takes them. options: of the search.
    """

    def __call__(self, model: Any, batches: Iterable[Any], **options: Any) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class Method:
    """One entry of the catalogue: what cannot be read off its plan (for the rest, `jtok.methods.catalogue.facts`)."""

    name: str
    title: str  # the paper's title
    paper: str  # arXiv id, venue
    family: Family
    training: Literal["none", "optional", "required"]
    assignment: Literal["hard", "soft", "none"]  # what happens to removed patches: hard merge, soft mixture, or dropped
    site: str  # where it is placed, as text
    idea: str  # five to ten words
    plan: Callable[..., Plan]
    claims: tuple[Claim, ...] = ()
    uses_position: bool = False  # the result depends on patch positions, not only on their content
    calibrate: Callable[..., dict[str, Any]] | None = None  # see `Calibrate`

    @property
    def options(self) -> dict[str, Any]:
        """Keyword options of `plan` beyond the target and the keep ratio, with their defaults.

        Those of an unpacked TypedDict (`**asked: Unpack[Asked]`) are included, None until given.
        """
        options: dict[str, Any] = {}
        for p in list(inspect.signature(self.plan).parameters.values())[1:]:
            if p.kind is p.VAR_KEYWORD:
                (unpacked,) = get_args(get_type_hints(self.plan)[p.name])
                options |= dict.fromkeys(unpacked.__annotations__)
            elif p.name not in ("keep", "rngs"):
                options[p.name] = p.default
        return options

    @property
    def default_keep(self) -> float | None:
        """The share kept by default."""
        keep = inspect.signature(self.plan).parameters.get("keep")
        return None if keep is None else keep.default


METHODS: dict[str, Method] = {}


def method(**facts: Any) -> Callable[[Callable[..., Plan]], Callable[..., Plan]]:
    """Enters a method's `plan(target, keep=..., **options) -> Plan` into the catalogue; see `Method` for the facts."""

    def enter(plan: Callable[..., Plan]) -> Callable[..., Plan]:
        entry = Method(plan=plan, **facts)
        if entry.name in METHODS and METHODS[entry.name].plan.__module__ != plan.__module__:
            raise UserError(f"two methods are called '{entry.name}': rename one of them.")
        METHODS[entry.name] = entry
        return plan

    return enter
