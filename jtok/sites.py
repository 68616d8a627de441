"""Where in a model a reducer is placed: a stage, a layer of it, and where in the layer.

Sites are strings on the command line and in plans, and objects everywhere else:

    tower.block.3.input  tower.block.3.after_attention  tower.block.3.output  ...  tower.output
    projector
    llm.input  llm.layer.0.after_attention  llm.layer.0.output  llm.layer.1.input  ...
    cross.0  cross.1  ...

They are ordered as in a forward pass.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Literal

from jtok.errors import UserError

Where = Literal["input", "after_attention", "output"]

WHERE: tuple[Where, ...] = ("input", "after_attention", "output")

#: Stages in the order of a forward pass; any other name is a user-defined tower.
_RANK = {"tower": 0, "projector": 1, "llm": 2, "cross": 2}

_PATTERNS = (
    re.compile(r"(?P<stage>projector)"),
    re.compile(r"(?P<stage>cross)\.(?P<layer>\d+)"),
    re.compile(r"(?P<stage>llm)\.layer\.(?P<layer>\d+)\.(?P<where>input|after_attention|output)"),
    re.compile(r"(?P<stage>(?!llm\b|cross\b|projector\b)\w+)\.block\.(?P<layer>\d+)\.(?P<where>\w+)"),
    re.compile(r"(?P<stage>(?!llm\b|cross\b|projector\b)\w+)\.(?P<where>output)"),
)


@functools.total_ordering
@dataclasses.dataclass(frozen=True)
class Site:
    """A point between two computations of a model.

    stage: `tower`, `projector`, `llm`, `cross` (cross-attention layers, numbered separately), or the name of another
    stack. layer: index of its block or layer from 0; None: after the whole stage. where: before the layer, between its
    attention and its MLP (after the residual), or after it. `llm.layer.K.output` and `llm.layer.K+1.input` see the same
    tokens; reducers at the former come first.
    """

    stage: str
    layer: int | None = None
    where: Where = "output"

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """The site that a string names. Raises UserError for a string that names none."""
        if isinstance(text, Site):
            return text
        if text == "llm.input":
            return cls("llm", 0, "input")
        for pattern in _PATTERNS:
            match = pattern.fullmatch(text)
            if match and match.groupdict().get("where", "output") in WHERE:
                parts = match.groupdict()
                layer = None if parts.get("layer") is None else int(parts["layer"])
                where = "input" if parts["stage"] == "cross" else parts.get("where", "output")
                return cls(parts["stage"], layer, where)
        raise UserError(
            f"'{text}' is not a site: write tower.block.3.after_attention (or .input, .output), tower.output, "
            "projector, llm.input, llm.layer.3.input (or .after_attention, .output) or cross.0."
        )

    def __str__(self) -> str:
        if self.stage == "projector":
            return "projector"
        if self.stage == "cross":
            return f"cross.{self.layer}"
        if self.layer is None:
            return f"{self.stage}.{self.where}"
        if self.stage == "llm":
            return "llm.input" if (self.layer, self.where) == (0, "input") else f"llm.layer.{self.layer}.{self.where}"
        return f"{self.stage}.block.{self.layer}.{self.where}"

    def __lt__(self, other: Site) -> bool:
        return self._key() < other._key()

    def _key(self) -> tuple[int, str, float, int]:
        layer = float("inf") if self.layer is None else self.layer
        # two stages of one rank are never in one model; their names make the order total
        return _RANK.get(self.stage, 0), self.stage, layer, WHERE.index(self.where)


PROJECTOR = Site("projector")
TOWER_OUTPUT = Site("tower")
LLM_INPUT = Site("llm", 0, "input")


def tower_sites(depth: int, stage: str = "tower") -> list[Site]:
    """All sites of a stack of `depth` blocks, in forward order."""
    return [*(Site(stage, i, where) for i in range(depth) for where in WHERE), Site(stage)]


def llm_sites(depth: int) -> list[Site]:
    """All sites of a language model of `depth` layers, in forward order."""
    return [Site("llm", i, where) for i in range(depth) for where in WHERE]


def cross_sites(count: int) -> list[Site]:
    """Sites of a decoder with `count` cross-attention layers: before each of them."""
    return [Site("cross", i, "input") for i in range(count)]
