"""Inception-v3 as FID uses it: 2048 features of an image, by the weights of 2015 in the names of pytorch-fid's file.

"Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567, with the details that FID's weights were
trained with: means next to the border leave out what is beyond it, and the last block takes maxima instead. The weights
do not ship with jtok; without a file there is no FID (`image_features` has a substitute under a name of its own).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jtok.checkpoints.safetensor_files import open_weights
from jtok.errors import UserError

SIDE = 299  # images are resized to it
CLASSES = 1008  # of the weights of 2015; torchvision's have 1000

#: A step of a branch: the name of a convolution; ("down", name) for a stride of 2 without padding; two names for two
#: convolutions side by side; or a pooling, "mean", "max" or "shrink" (a maximum with a stride of 2).
Step = str | tuple[str, ...]
_DOUBLE = ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]
_A = [["branch1x1"], ["branch5x5_1", "branch5x5_2"], _DOUBLE, ["mean", "branch_pool"]]
_B = [[("down", "branch3x3")], [*_DOUBLE[:2], ("down", "branch3x3dbl_3")], ["shrink"]]
_C = [
    ["branch1x1"],
    ["branch7x7_1", "branch7x7_2", "branch7x7_3"],
    [f"branch7x7dbl_{i}" for i in range(1, 6)],
    ["mean", "branch_pool"],
]
_D = [
    ["branch3x3_1", ("down", "branch3x3_2")],
    ["branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", ("down", "branch7x7x3_4")],
    ["shrink"],
]


def _e(pool: str) -> list[list[Step]]:
    return [
        ["branch1x1"],
        ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
        [*_DOUBLE[:2], ("branch3x3dbl_3a", "branch3x3dbl_3b")],
        [pool, "branch_pool"],
    ]


BLOCKS: dict[str, list[list[Step]]] = {
    **{f"Mixed_5{i}": _A for i in "bcd"},
    "Mixed_6a": _B,
    **{f"Mixed_6{i}": _C for i in "bcde"},
    "Mixed_7a": _D,
    "Mixed_7b": _e("mean"),
    "Mixed_7c": _e("max"),
}
STEM: list[Step] = [("down", "Conv2d_1a_3x3"), ("valid", "Conv2d_2a_3x3"), "Conv2d_2b_3x3", "shrink"]
STEM += ["Conv2d_3b_1x1", ("valid", "Conv2d_4a_3x3"), "shrink"]
POOLS = ("mean", "max", "shrink")
HOW = {"down": (2, "VALID"), "valid": (1, "VALID")}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kernels"], meta_fields=["digest"])
@dataclasses.dataclass(frozen=True)
class Inception:
    """Convolutions by name, their batch norms folded in: HWIO kernels and biases. digest: of the file they are from."""

    kernels: Mapping[str, tuple[Array, Array]]
    digest: str

    @classmethod
    def load(cls, path: str | os.PathLike) -> Inception:
        """From a safetensors file with the names of pytorch-fid's pt_inception-2015-12-05.

        Raises UserError for missing tensors, torchvision's weights, and layers that do not fit each other.
        """
        weights = open_weights(path)
        parts = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        missing = [f"{c}.{p}" for c in convolutions() for p in parts if f"{c}.{p}" not in weights.shapes]
        if missing:
            raise UserError(
                f"'{path}' is not the Inception network of FID: it lacks {missing[0]} and {len(missing) - 1} others."
            )
        classes = weights.shapes.get("fc.weight", (CLASSES,))[0]
        if classes != CLASSES:
            raise UserError(
                f"'{path}' is an Inception network of {classes} classes; FID's has {CLASSES} (pt_inception-2015-12-05)."
            )
        kernels = {c: _folded(*(weights.read(f"{c}.{p}") for p in parts)) for c in convolutions()}
        digest = hashlib.sha256(Path(weights.files["Conv2d_1a_3x3.conv.weight"]).read_bytes()).hexdigest()[:12]
        net = cls(kernels, digest)
        try:
            jax.eval_shape(net, jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32))
        except (TypeError, ValueError) as error:
            raise UserError(f"'{path}' has layers that do not fit each other: {str(error).splitlines()[0]}") from None
        return net

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B D"]:
        """Features of images in [0,1]: the mean over the last grid, D = 2048 for the published weights."""
        b = images.shape[0]
        x = jax.image.resize(images.astype(jnp.float32), (b, SIDE, SIDE, 3), "linear", antialias=False)
        x = 2 * x - 1
        for step in STEM:
            x = self._step("", step, x)
        for block, branches in BLOCKS.items():
            x = jnp.concatenate([self._branch(block, steps, x) for steps in branches], -1)
        return x.mean((1, 2))

    def _branch(self, block: str, steps: list[Step], x: Array) -> Array:
        for step in steps:
            x = self._step(block + ".", step, x)
        return x

    def _step(self, prefix: str, step: Step, x: Array) -> Array:
        if isinstance(step, str):
            return _pool(step, x) if step in POOLS else self._conv(prefix + step, x)
        if step[0] in HOW:
            return self._conv(prefix + step[1], x, *HOW[step[0]])
        return jnp.concatenate([self._conv(prefix + name, x) for name in step], -1)

    def _conv(self, name: str, x: Array, stride: int = 1, padding: str = "SAME") -> Array:
        kernel, bias = self.kernels[name]
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layout)
        return jax.nn.relu(x + bias)


def convolutions() -> list[str]:
    """Names of all convolutions."""
    found = list(_named(STEM, ""))
    for block, branches in BLOCKS.items():
        for steps in branches:
            found += _named(steps, block + ".")
    return found


def _named(steps: list[Step], prefix: str) -> Iterator[str]:
    for step in steps:
        names = (step,) if isinstance(step, str) else step
        yield from (prefix + name for name in names if name not in (*POOLS, *HOW))


def _folded(kernel: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> tuple[Array, Array]:
    """A convolution [O,I,H,W] and the batch norm after it as one kernel [H,W,I,O] and bias [O]."""
    gain = scale / np.sqrt(variance + 1e-3)
    return jnp.asarray((kernel * gain[:, None, None, None]).transpose(2, 3, 1, 0)), jnp.asarray(bias - mean * gain)


def _pool(kind: str, x: Array) -> Array:
    if kind == "shrink":
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    if kind == "max":
        return _window(x, -jnp.inf, lax.max)
    return _window(x, 0.0, lax.add) / _window(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 0.0, lax.add)


def _window(x: Array, start: float, join: Callable) -> Array:
    return lax.reduce_window(x, start, join, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
