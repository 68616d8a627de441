"""Names of tensors in files of projectors, as their authors released them, and reading and writing those files.

A projector that has `names`, a list of rules, can be read from a whole checkpoint, where its tensors are called
`model.mm_projector.*` or `multi_modal_projector.*`, or from a file with nothing else, with or without such a lead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jtok.checkpoints.names import Rule
from jtok.checkpoints.safetensor_files import Weights, check_names, wrong_shape

_LEAD = re.compile(r"^(?:(?:module|base_model|model)\.)*(?:mm_projector|multi_modal_projector)\.")


def linear(theirs: str, ours: str) -> list[Rule]:
    """A linear layer in one or several spellings, separated by spaces; a point is a layer without a name."""
    leads = ["" if name == "." else f"{name}." for name in theirs.split()]
    return [
        Rule(tuple(f"{lead}weight" for lead in leads), f"{ours}.kernel", "linear"),
        Rule(tuple(f"{lead}bias" for lead in leads), f"{ours}.bias", "flat"),
    ]


def norm(theirs: str, ours: str) -> list[Rule]:
    """A layer norm."""
    return [Rule((f"{theirs}.weight",), f"{ours}.scale", "flat"), Rule((f"{theirs}.bias",), f"{ours}.bias", "flat")]


def attention(theirs: str, ours: str) -> list[Rule]:
    """A `torch.nn.MultiheadAttention` as a `QueryAttention`."""
    return [
        Rule((f"{theirs}.in_proj_weight",), f"{ours}.kernel", "linear"),
        Rule((f"{theirs}.in_proj_bias",), f"{ours}.bias", "flat"),
        Rule((f"{theirs}.out_proj.weight",), f"{ours}.out.kernel", "heads"),
        Rule((f"{theirs}.out_proj.bias",), f"{ours}.out.bias", "flat"),
    ]


def read_projector(
    weights: Weights, rules: Sequence[Rule], like: Mapping[str, Any], fixed: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Path -> float32 array for every path of `like` (path -> anything with a shape).

    fixed: tensors of the file that are no parameters. Raises UserError for missing and unknown tensors of the
    projector, and for wrong shapes; other parts of a checkpoint are left alone.
    """
    found = {_LEAD.sub("", name): name for name in weights.shapes if _LEAD.match(name)}
    found = found or {name: name for name in weights.shapes}
    chosen = {r.path: next((n for n in r.names if n in found), None) for r in rules if r.path in like}
    missing = [r.names[0] for r in rules if r.path in like and chosen[r.path] is None]
    check_names(weights, missing=missing, unknown=set(found) - set(chosen.values()) - set(fixed))
    out = {}
    for rule in (r for r in rules if r.path in like):
        name, shape = found[chosen[rule.path]], tuple(like[rule.path].shape)
        needed = _shape_in_file(rule, shape)
        if weights.shapes[name] != needed:
            raise wrong_shape(weights, name, weights.shapes[name], needed)
        tensor = weights.read(name)
        out[rule.path] = (tensor if rule.how == "flat" else tensor.T).reshape(shape)
    return out


def write_projector(rules: Sequence[Rule], params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The authors' tensors, with their lead, of path -> array."""
    out = {}
    for rule in (r for r in rules if r.path in params):
        a = np.asarray(params[rule.path])
        shape = _shape_in_file(rule, a.shape)
        out[f"model.mm_projector.{rule.names[0]}"] = (
            a.reshape(shape) if rule.how == "flat" else a.reshape(shape[::-1]).T
        )
    return out


def _shape_in_file(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...]:
    size = math.prod(shape)
    if rule.how == "flat":
        return shape if len(shape) == 2 else (size,)
    inputs = size // shape[-1] if rule.how == "heads" else shape[0]
    return size // inputs, inputs
