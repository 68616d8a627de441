"""Runs the layers of a stack, whether their parameters are stacked arrays or each layer has its own arrays.

The type of `blocks` alone decides: one layer module whose parameters have a leading axis [depth, ...], as
`stack_layers` makes it and files hold it, is scanned; a sequence of layers, as `unstack` makes it, is unrolled. Models
hand their `blocks` to `Stacked` and do not know which of the two they have.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array


def stack_layers(make_layer: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs) -> nnx.Module:
    """The parameters of `depth` layers, stacked along axis 0 of one module; each layer is initialised separately.

    The paths of its parameters are those of one layer.
    """

    @nnx.split_rngs(splits=depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: nnx.Rngs) -> nnx.Module:
        return make_layer(rngs)

    return make(rngs)


def unstack(blocks: nnx.Module) -> nnx.List:
    """The layers of a stack from `stack_layers`, each with its own arrays: paths then start with the layer's number.

    Suits inference, where a separate array can be read in place; a scan copies each layer out of its stack.
    """
    stack = Stacked(blocks)
    return nnx.List([stack.layer(i) for i in range(stack.depth)])


class Stacked:
    """Layers `first`, `first + 1`, ... of a model, run one at a time or many in a row.

    blocks: stacked or a sequence of layers (see above). remat: `scan` recomputes activations in the backward pass.
    scope: name of the layers in profiles, followed by their numbers ("tower.blocks" becomes "tower.blocks.0-11"); empty
    for none.
    """

    def __init__(
        self, blocks: nnx.Module | Sequence[nnx.Module], *, remat: bool = False, scope: str = "", first: int = 0
    ):
        self.remat, self.scope, self.first = remat, scope, first
        self._layers = list(blocks) if isinstance(blocks, (Sequence, nnx.List)) else None
        if self._layers is None:
            self._graphdef, self._state = nnx.split(blocks)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return jax.tree.leaves(self._state)[0].shape[0] if self._layers is None else len(self._layers)

    def layer(self, i: int) -> Any:
        """Layer i alone."""
        return self._at(i - self.first) if self._layers is None else self._layers[i - self.first]

    def scan(
        self, body: Callable[..., tuple[Any, Any]], carry: Any, start: int, stop: int, *rows: Any
    ) -> tuple[Any, Any]:
        """Runs `body(layer, carry, *row) -> (carry, output)` over layers [start, stop), of which there is at least one.

        rows: trees of arrays [stop - start, ...], of which each layer gets its row. Returns the last carry and the
        outputs, stacked.
        """
        run = self._scan if self._layers is None else self._unroll
        with jax.named_scope(f"{self.scope}.{start}-{stop - 1}") if self.scope else contextlib.nullcontext():
            return run(body, carry, start - self.first, stop - self.first, rows)

    def _at(self, i: int | Array) -> Any:
        return nnx.merge(self._graphdef, jax.tree.map(lambda p: p[i], self._state))

    def _scan(self, body: Callable, carry: Any, start: int, stop: int, rows: tuple) -> tuple[Any, Any]:
        everything = stop - start == self.depth  # then the scan slices the stack itself, without an index

        def step(carry, item):
            at, row = item
            return body(nnx.merge(self._graphdef, at) if everything else self._at(at), carry, *row)

        step = jax.checkpoint(step) if self.remat else step
        return jax.lax.scan(step, carry, (self._state if everything else jnp.arange(start, stop), rows))

    def _unroll(self, body: Callable, carry: Any, start: int, stop: int, rows: tuple) -> tuple[Any, Any]:
        outputs = []
        for number, layer in enumerate(self._layers[start:stop]):
            step = functools.partial(body, layer)
            step = jax.checkpoint(step) if self.remat else step
            carry, output = step(carry, *jax.tree.map(lambda a, n=number: a[n], rows))
            outputs.append(output)
        return carry, jax.tree.map(lambda *arrays: jnp.stack(arrays), *outputs)
