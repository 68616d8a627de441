"""Weights of a golden vector as an open checkpoint, without a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from jtok.checkpoints.safetensor_files import Weights
from jtok.tokenizers.released import fill


@dataclasses.dataclass(frozen=True)
class InMemory(Weights):
    """Tensors in memory instead of a file's."""

    held: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self.held[name], np.float32)

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        return ((name, self.read(name)) for name in names)


def as_weights(tensors: Mapping[str, np.ndarray]) -> InMemory:
    """The tensors as a checkpoint with their names and shapes."""
    return InMemory(Path("golden"), {k: v.shape for k, v in tensors.items()}, {}, {}, tensors)


def filled(make: Callable[[], Any], tensors: Mapping[str, np.ndarray]) -> Any:
    """The tokenizer that `make` describes with these tensors, under its released names; nothing is drawn at random."""
    net = nnx.eval_shape(make)
    return fill(net, as_weights(tensors), net.names())
