"""Rules that say under which name, and how laid out, each of our parameters lies in files that others released.

Tables of rules are data: they lie beside the models that they belong to. `read` finds and reads tensors by them,
`write` writes them. The small functions below make the rules of common layers; each takes the released names first
(several spellings are separated by spaces), then our dotted path.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

Shape = tuple[int, ...]
Layout = Literal["flat", "table", "linear", "heads", "patch", "conv", "volume"]
#: The index into a tensor of ours (of one layer) that a model's config gives.
Where = Callable[[Any], Any]


def everywhere(config: Any) -> Any:
    """All of a tensor."""
    return ...


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor of a file, or one in each layer, and the part of ours that it fills.

    names: its spellings; the first is written to files and used in errors. `{}` in one is the layer's number; in
    tables whose files have several leads it is cut off with the lead, and the paths of stacked layers begin with
    `blocks.`.
    path: of our tensor, dotted.
    how: flat - a vector in our order; table - our very shape, apart from axes of size one; linear - [outputs, inputs];
    heads - the same, our inputs being [heads, channels]; patch - a convolution [outputs, channels, rows, columns], ours
    being [rows * columns * channels, outputs]; conv - the same, ours being [rows, columns, channels, outputs]; volume -
    a convolution of the config's `kernel`, the inputs in our order.
    at: the index into our tensor (of one layer) that it fills.
    thirds: the range of the first axis that is meant, where one tensor of query, key and value fills several of ours.
    ones: axes of size one that the file has besides, before a table and after the inputs of a linear layer; read
    with or without them, and written.
    """

    names: tuple[str, ...]
    path: str
    how: Layout
    at: Where = everywhere
    thirds: tuple[int, int] = (0, 3)
    ones: int = 0

    @property
    def in_layers(self) -> bool:
        """One such tensor for every layer, ours being stacked along its first axis."""
        return self.path.startswith("blocks.") or "{}" in self.names[0]

    def spell(self, layer: int | None) -> str:
        """The first spelling with the number of its layer, where that is written in it."""
        return self.names[0].format(layer)

    def shape_in_file(self, ours: Shape, config: Any) -> Shape:
        """Shape of the tensor that fills a part of the shape `ours` (without `ones`)."""
        start, stop = self.thirds
        rows, *rest = self._whole(ours, config)
        return rows * 3 // (stop - start), *rest

    def _whole(self, ours: Shape, config: Any) -> Shape:
        size = math.prod(ours)
        if self.how == "flat":
            return (size,)
        if self.how == "table":
            return _without_lead(ours)
        if self.how == "volume":
            return config.kernel
        if self.how == "conv":
            return ours[3], ours[2], *ours[:2]
        if self.how == "patch" and not packed(config):
            return ours[-1], size // (ours[-1] * config.patch**2), config.patch, config.patch
        inputs = size // ours[-1] if self.how in ("heads", "patch") else ours[0]
        return size // inputs, inputs

    def fits(self, given: Shape, ours: Shape, config: Any) -> bool:
        """Whether a tensor of the shape `given` fills a part of the shape `ours`."""
        needed = self.shape_in_file(ours, config)
        if self.how in ("flat", "table"):
            return _without_lead(given) == needed
        return given[: len(needed)] == needed and all(n == 1 for n in given[len(needed) :])


def packed(config: Any) -> bool:
    """Whether a tower embeds patches that come as rows, with a linear layer, and not images."""
    return getattr(config, "packed", False)


def _without_lead(shape: Shape) -> Shape:
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape or (1,)


def linear(theirs: str, ours: str, *, how: Layout | None = None, bias: bool = True, ones: int = 0) -> list[Rule]:
    """Kernel and bias of a linear layer (a convolution by `how`); a spelling `.` is a layer without a name.

    The inputs of a layer that is called `out` are those of all heads.
    """
    leads = ["" if name == "." else f"{name}." for name in theirs.split()]
    how = how or ("heads" if ours.split(".")[-1] == "out" else "linear")
    kernel = Rule(tuple(f"{lead}weight" for lead in leads), f"{ours}.kernel", how, ones=ones)
    return [kernel, Rule(tuple(f"{lead}bias" for lead in leads), f"{ours}.bias", "flat")][: 1 + bias]


def norm(theirs: str, ours: str, *, bias: bool = True) -> list[Rule]:
    """Scale and bias of a normalisation."""
    names = theirs.split()
    rules = [Rule(tuple(f"{n}.{t}" for n in names), f"{ours}.{o}", "flat") for t, o in _NORM]
    return rules[: 1 + bias]


_NORM = (("weight", "scale"), ("bias", "bias"))


def fused(theirs: str, ours: str, at: Where, bias_at: Where) -> list[Rule]:
    """A linear layer that is one part of a fused one of ours: where its kernel and its bias lie in that."""
    kernel, bias = linear(theirs, ours)
    return [dataclasses.replace(kernel, at=at), dataclasses.replace(bias, at=bias_at)]


def attention(theirs: str, ours: str, qkv: str = "") -> list[Rule]:
    """A `torch.nn.MultiheadAttention`; qkv: what our projection of query, key and value is called in `ours`."""
    inner = f"{ours}.{qkv}" if qkv else ours
    return [
        Rule((f"{theirs}.in_proj_weight",), f"{inner}.kernel", "linear"),
        Rule((f"{theirs}.in_proj_bias",), f"{inner}.bias", "flat"),
        *linear(f"{theirs}.out_proj", f"{ours}.out"),
    ]


def flat(theirs: str, ours: str, at: Where = everywhere, thirds: tuple[int, int] = (0, 3)) -> Rule:
    """A vector."""
    return Rule(tuple(theirs.split()), ours, "flat", at, thirds)


def table(theirs: str, ours: str, at: Where = everywhere, ones: int = 0) -> Rule:
    """A table, token or anything else of the same shape in the file and here."""
    return Rule(tuple(theirs.split()), ours, "table", at, ones=ones)
