"""Our parameters under the names and in the layouts of released checkpoints: the inverse of `read`, by its tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jtok.checkpoints.rules import Rule, packed
from jtok.errors import UserError


def released(
    params: Mapping[str, np.ndarray],
    config: Any,
    table: Sequence[Rule],
    spell: Callable[[Rule, int | None], str] = Rule.spell,
) -> dict[str, np.ndarray]:
    """Name -> tensor of every tensor that `table` makes of our parameters (dotted path -> array).

    spell: the name in the file of a rule's tensor in a layer (None outside of layers). Of rules that are alternatives
    the first are taken. Raises UserError if a parameter has no name in the table.
    """
    pieces: dict[str, list[tuple[int, np.ndarray]]] = defaultdict(list)
    filled: Counter[str] = Counter()
    for rule in table:
        if rule.path not in params:
            continue
        whole = np.asarray(params[rule.path])
        parts = [(layer, a[rule.at(config)]) for layer, a in (enumerate(whole) if rule.in_layers else [(None, whole)])]
        size = sum(a.size for _, a in parts)
        if size == 0 or filled[rule.path] + size > whole.size:
            continue
        filled[rule.path] += size
        for layer, a in parts:
            pieces[spell(rule, layer)].append((rule.thirds[0], _laid_out(rule, a, config)))
    nameless = sorted(path for path, a in params.items() if filled[path] != a.size)
    if nameless:
        raise UserError(f"these names have no place for {', '.join(nameless)}: export under others, or as stablehlo.")
    return {name: np.concatenate([a for _, a in sorted(rows, key=lambda r: r[0])]) for name, rows in pieces.items()}


def _laid_out(rule: Rule, a: np.ndarray, config: Any) -> np.ndarray:
    """A part of one of our tensors as the file holds it: outputs before inputs."""
    if rule.how == "flat":
        return a.reshape(-1)
    if rule.how == "table":
        return a.reshape((1,) * rule.ones + a.shape)
    if rule.how == "conv":
        return a.transpose(3, 2, 0, 1)
    if rule.how == "patch" and not packed(config):
        return a.reshape(config.patch, config.patch, -1, a.shape[-1]).transpose(3, 2, 0, 1)
    if rule.how == "volume":
        return a.T.reshape(config.kernel)
    inputs = a.shape[0] if rule.how == "linear" else a.size // a.shape[-1]
    return a.reshape(inputs, -1).T.reshape(-1, inputs, *(1,) * rule.ones)
