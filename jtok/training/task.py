"""What the training loop asks of an experiment."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Array, Float, Int, PyTree

Batch = Mapping[str, np.ndarray]


class DataIterator(Protocol):
    """A stream of batches that can be put back where it stood (Grain's dataset iterators are such).

    `get_state` returns something `json.dumps` accepts; after `set_state(s)` the next batch is the one that followed
    when `get_state` returned `s`. In a run of several processes each reads its own rows; the state counts global
    batches, so that it is the same in all of them, and good for any number of them.
    """

    def __next__(self) -> Batch: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class Task(Protocol):
    """A model, its objective and its data. The loop knows nothing else about them.

    Master parameters of trainable leaves are float32; a task that computes in bfloat16 casts inside `loss`.
    """

    def init(self, key: Array) -> PyTree[Array]:
        """All parameters, trainable and frozen, as a pytree of arrays."""
        ...

    def loss(
        self, params: PyTree[Array], batch: Mapping[str, Array], key: Array, step: Int[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The mean loss over the rows of `batch`, and scalars to log. Pure; traced under `jit`.

        `key` differs at every step and micro-batch; `step` counts the updates done so far.
        """
        ...

    def evaluate(self, params: PyTree[Array], batch: Mapping[str, Array]) -> dict[str, Float[Array, "b"]]:
        """One number per row and metric. Pure; traced under `jit`. Rows with `batch["valid"] == False` are ignored."""
        ...

    def trainable(self, params: PyTree[Array]) -> PyTree[bool] | None:
        """Which leaves learn: a tree of bools (or a prefix of one) shaped like `params`; None means all."""
        ...

    def train_data(self) -> Iterable[Batch]:
        """Endless batches, of `config.train.batch` rows those that this process reads (see `jtok.data.batches`); its
        `iter()` is a `DataIterator`. Called, and iterated, under the mesh of the run."""
        ...

    def eval_data(self) -> Iterable[Batch]:
        """One pass over the held-out rows. Padding rows carry `batch["valid"] == False`."""
        ...
