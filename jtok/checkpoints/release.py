"""Our tensors under the names and in the layouts of released checkpoints: `convert` turned round, by its tables."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jtok.checkpoints.names import Rule
from jtok.errors import UserError

#: Tables and tokens that files hold with leading axes of size one.
_THREE_AXES = re.compile(r"(_tokens?|position_embeddings|pos_embed|probe|latent)$")


def release(
    params: Mapping[str, np.ndarray], config: Any, table: Sequence[Rule], spell: Callable[[Rule], str]
) -> dict[tuple[int | None, str], np.ndarray]:
    """(layer or None, name) -> tensor of every tensor that `table` makes of our parameters (dotted path -> array).

    spell: which of a rule's names the file is to have. Raises UserError if a parameter has no name in the table.
    """
    pieces: dict[tuple[int | None, str], list[tuple[int, np.ndarray]]] = defaultdict(list)
    filled: Counter[str] = Counter()
    for rule in table:
        whole = params.get(rule.path)
        if whole is None:
            continue
        layers = enumerate(whole) if rule.in_layers else [(None, whole)]
        parts = [(layer, a[rule.at(config)]) for layer, a in layers]
        size = sum(a.size for _, a in parts)
        if size == 0 or filled[rule.path] + size > whole.size:  # a second way to name what has its names already
            continue
        filled[rule.path] += size
        for layer, a in parts:
            name = spell(rule)
            pieces[layer, name].append((rule.thirds[0], _laid_out(rule, name, a, config)))
    nameless = sorted(path for path, a in params.items() if filled[path] != a.size)
    if nameless:
        raise UserError(f"these names have no place for {', '.join(nameless)}: export under others, or as stablehlo.")
    return {key: np.concatenate([a for _, a in sorted(found, key=lambda p: p[0])]) for key, found in pieces.items()}


def _laid_out(rule: Rule, name: str, a: np.ndarray, config: Any) -> np.ndarray:
    """A part of one of our tensors as the file holds it: outputs before inputs."""
    if rule.how == "patch" and not config.packed:
        return a.reshape(config.patch, config.patch, config.channels, config.width).transpose(3, 2, 0, 1)
    if rule.how != "flat":
        inputs = math.prod(a.shape[:-1]) if rule.how == "heads" else a.shape[0]
        return a.reshape(inputs, -1).T
    if _THREE_AXES.search(name):
        return a.reshape(1, -1, config.width)
    return a if rule.path == "position" else a.reshape(-1)
