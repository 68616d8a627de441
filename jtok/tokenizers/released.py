"""Loads released tokenizers: a table says under which name, and how, each of our tensors lies in the file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.checkpoints.safetensor_files import Weights, check_names, open_weights, wrong_shape
from jtok.checkpoints.trees import flatten


@dataclasses.dataclass(frozen=True)
class Name:
    """ours: dotted path in the parameters. theirs: name in the file; `{}` in it is the layer's number, of a tensor that
    we hold stacked over layers. how: flat - in the same order; linear - [outputs, inputs, 1, ...]; conv - a convolution
    [outputs, inputs, rows, columns]; patch - one whose inputs are a flattened patch [rows, columns, inputs] of ours;
    third0 to third2 - a third of the outputs of a linear one (query, key or value)."""

    ours: str
    theirs: str
    how: Literal["flat", "linear", "conv", "patch", "third0", "third1", "third2"] = "flat"


def linear(ours: str, theirs: str, how: str = "linear", bias: bool = True) -> Iterator[Name]:
    """Kernel and bias of a projection or convolution."""
    yield Name(f"{ours}.kernel", f"{theirs}.weight", how)
    if bias:
        yield Name(f"{ours}.bias", f"{theirs}.bias")


def norm(ours: str, theirs: str) -> Iterator[Name]:
    """Scale and bias of a normalisation."""
    yield Name(f"{ours}.scale", f"{theirs}.weight")
    yield Name(f"{ours}.bias", f"{theirs}.bias")


def trunk(ours: str, theirs: str) -> Iterator[Name]:
    """A `Trunk` under the names of PyTorch's MultiheadAttention and CLIP's MLP."""
    o, t = f"{ours}.blocks", theirs + ".{}"
    yield from norm(f"{o}.norm1", f"{t}.ln_1")
    yield from norm(f"{o}.norm2", f"{t}.ln_2")
    yield Name(f"{o}.attention.qkv.kernel", f"{t}.attn.in_proj_weight", "linear")
    yield Name(f"{o}.attention.qkv.bias", f"{t}.attn.in_proj_bias")
    yield from linear(f"{o}.attention.out", f"{t}.attn.out_proj")
    yield from linear(f"{o}.mlp.up", f"{t}.mlp.c_fc")
    yield from linear(f"{o}.mlp.down", f"{t}.mlp.c_proj")


def fill(
    model: nnx.Module,
    weights: Weights | str | os.PathLike,
    names: Iterable[Name],
    ignore: Iterable[str] = (),
    under: str = "",
):
    """The model with all its parameters taken from a checkpoint; tensors beginning with one of `ignore` are left.

    under: what the names of the model's tensors begin with in the file; all others are left.

    Raises UserError with all missing and unknown tensors in one sentence, or for a tensor of the wrong shape.
    """
    weights = weights if isinstance(weights, Weights) else open_weights(weights)
    graph, state = nnx.split(model)
    wanted = flatten(nnx.to_pure_dict(state))
    by_path = {name.ours: dataclasses.replace(name, theirs=under + name.theirs) for name in names}
    files = {path: _files(by_path.get(path), path, leaf.shape) for path, leaf in wanted.items()}
    expected = {file for rows in files.values() for file in rows}
    left = tuple(ignore) or ("\0",)
    present = {file for file in weights.shapes if file.startswith(under) and not file.startswith(left)}
    present |= expected & weights.shapes.keys()
    check_names(weights, missing=expected - present, unknown=present - expected)
    leaves = []
    for path, leaf in wanted.items():
        rows = files[path]
        shape = leaf.shape[1:] if "{}" in by_path[path].theirs else leaf.shape
        each = [_turned(weights, file, by_path[path].how, shape) for file in rows]
        leaves.append(jnp.asarray(np.stack(each) if "{}" in by_path[path].theirs else each[0], leaf.dtype))
    pure = jax.tree.unflatten(jax.tree.structure(nnx.to_pure_dict(state)), leaves)
    nnx.replace_by_pure_dict(state, pure)
    return nnx.merge(graph, state)


def _files(name: Name | None, path: str, shape: tuple[int, ...]) -> list[str]:
    if name is None:
        raise KeyError(f"no name of a released tensor for '{path}'")
    return [name.theirs.format(i) for i in range(shape[0])] if "{}" in name.theirs else [name.theirs]


def _turned(weights: Weights, file: str, how: str, shape: tuple[int, ...]) -> np.ndarray:
    x = weights.read(file)
    if how.startswith("third"):
        x, how = np.split(x, 3)[int(how[-1])], "linear"
    if x.size != int(np.prod(shape)):
        raise wrong_shape(weights, file, x.shape, shape)
    if how == "linear":
        x = x.reshape(x.shape[0], -1).T
    elif how in ("conv", "patch"):
        x = x.transpose(2, 3, 1, 0)
    return x.reshape(shape)
