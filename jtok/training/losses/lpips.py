"""LPIPS: the distance of two images in the features of a classifier, layer by layer, with learned weights.

"The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", arXiv:1801.03924, CVPR 2018. Neither the
backbone's weights nor the linear ones ship with jtok; without files the metric refuses, it never uses random ones.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jtok.checkpoints.safetensor_files import open_weights
from jtok.errors import UserError

_SHIFT, _SCALE = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])

#: Layers of the backbones in the numbering of their `features.N`: (convolution, stride, padding), "pool" or "tap".
_LAYERS: dict[str, list] = {
    "alex": [
        (0, 4, 2),
        "tap",
        "pool3",
        (3, 1, 2),
        "tap",
        "pool3",
        (6, 1, 1),
        "tap",
        (8, 1, 1),
        "tap",
        (10, 1, 1),
        "tap",
    ],
    "vgg": [
        *[(0, 1, 1), (2, 1, 1), "tap", "pool2", (5, 1, 1), (7, 1, 1), "tap", "pool2"],
        *[(10, 1, 1), (12, 1, 1), (14, 1, 1), "tap", "pool2", (17, 1, 1), (19, 1, 1), (21, 1, 1), "tap", "pool2"],
        *[(24, 1, 1), (26, 1, 1), (28, 1, 1), "tap"],
    ],
}


def scaled(images: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """Images in [-1, 1] as the backbones read them."""
    return (images - jnp.asarray(_SHIFT, images.dtype)) / jnp.asarray(_SCALE, images.dtype)


def head(
    a: Sequence[Float[Array, "B H W C"]], b: Sequence[Float[Array, "B H W C"]], weights: Sequence[Float[Array, "C"]]
) -> Float[Array, "L B"]:
    """The distance in every layer's features, [layers, B]; their sum is LPIPS."""

    def unit(f):
        return f / jnp.sqrt(1e-8 + jnp.square(f).sum(-1, keepdims=True))

    pairs = zip(a, b, weights, strict=True)
    return jnp.stack([(jnp.square(unit(f) - unit(g)) @ w).mean((1, 2)) for f, g, w in pairs])


@dataclasses.dataclass(frozen=True)
class LPIPS:
    """A backbone's convolutions (HWIO kernels and biases by layer number), and the weights of its five taps."""

    net: Literal["alex", "vgg"]
    kernels: Mapping[int, tuple[Array, Array]]
    linear: Sequence[Float[Array, "C"]]

    @classmethod
    def load(cls, backbone: str | os.PathLike, linear: str | os.PathLike, net: str = "alex") -> LPIPS:
        """From two safetensors files: the classifier's (`features.N.weight`, `.bias`, torchvision's names) and LPIPS's
        linear weights (`lin0.model.1.weight` ... [1,C,1,1]). Raises UserError for missing files and tensors."""
        if net not in _LAYERS:
            raise UserError(f"LPIPS has no backbone '{net}': choose from {', '.join(_LAYERS)}.")
        conv = [item[0] for item in _LAYERS[net] if isinstance(item, tuple)]
        names = [f"features.{i}.{part}" for i in conv for part in ("weight", "bias")]
        arrays = _read(backbone, names)
        kernels = {
            i: (jnp.transpose(arrays[f"features.{i}.weight"], (2, 3, 1, 0)), jnp.asarray(arrays[f"features.{i}.bias"]))
            for i in conv
        }
        taps = [f"lin{i}.model.1.weight" for i in range(_LAYERS[net].count("tap"))]
        found = _read(linear, taps)
        return cls(net, kernels, [jnp.asarray(found[name]).reshape(-1) for name in taps])

    def features(self, images: Float[Array, "B H W 3"]) -> list[Float[Array, "B H W C"]]:
        """The taps of images in [-1, 1]."""
        x, taps = scaled(images.astype(jnp.float32)), []
        for item in _LAYERS[self.net]:
            if item == "tap":
                taps.append(x)
            elif isinstance(item, str):
                window = int(item[-1])
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, 2, 2, 1), "VALID")
            else:
                number, stride, pad = item
                kernel, bias = self.kernels[number]
                layout = ("NHWC", "HWIO", "NHWC")
                x = lax.conv_general_dilated(x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=layout)
                x = jax.nn.relu(x + bias)
        return taps

    def __call__(self, a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
        """LPIPS of images in [0, 1]; at least 64 pixels a side are sensible."""
        return head(self.features(2 * a - 1), self.features(2 * b - 1), self.linear).sum(0)


def _read(path: str | os.PathLike, names: Sequence[str]) -> dict[str, np.ndarray]:
    weights = open_weights(path)
    missing = [name for name in names if name not in weights.shapes]
    if missing:
        raise UserError(f"'{path}' lacks {', '.join(missing)}: LPIPS needs the tensors {names[0]} ... {names[-1]}.")
    return {name: np.asarray(weights.read(name), np.float32) for name in names}
