"""Loads released tokenizers by the rules that each lists in `names`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

from flax import nnx

from jtok.checkpoints.match import Format, Part
from jtok.checkpoints.read import read
from jtok.checkpoints.rules import Rule, attention, linear, norm
from jtok.checkpoints.safetensor_files import Weights, open_weights


def trunk(theirs: str, ours: str) -> list[Rule]:
    """A `Trunk` under the names of PyTorch's MultiheadAttention and CLIP's MLP."""
    o, t = f"{ours}.blocks", theirs + ".{}"
    return [
        *norm(f"{t}.ln_1", f"{o}.norm1"),
        *norm(f"{t}.ln_2", f"{o}.norm2"),
        *attention(f"{t}.attn", f"{o}.attention", "qkv"),
        *linear(f"{t}.mlp.c_fc", f"{o}.mlp.up"),
        *linear(f"{t}.mlp.c_proj", f"{o}.mlp.down"),
    ]


def fill(
    model: nnx.Module,
    weights: Weights | str | os.PathLike,
    names: Iterable[Rule],
    ignore: Iterable[str] = (),
    under: str = "",
):
    """The model with all parameters from a checkpoint; tensors whose names begin with one of `ignore` are skipped.

    under: prefix of the model's tensors in the file; all others are skipped.

    Raises UserError with all missing and unknown tensors in one sentence, or for a tensor of the wrong shape.
    """
    weights = weights if isinstance(weights, Weights) else open_weights(weights)
    graph, state = nnx.split(model)
    table = [dataclasses.replace(rule, names=tuple(under + name for name in rule.names)) for rule in names]
    ignored = tuple(ignore)
    form = Format(left=lambda name: not name.startswith(under) or name.startswith(ignored))
    pure = read(weights, {"": Part(table, model.config)}, nnx.to_pure_dict(state), form)
    nnx.replace_by_pure_dict(state, pure)
    return nnx.merge(graph, state)
