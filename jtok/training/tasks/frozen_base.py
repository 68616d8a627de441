"""The frozen tokenizer under one that trains: a file, read once, whose parameters go with those that learn.

So checkpoints are self-contained, and the step is compiled without constants of hundreds of megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from flax import nnx
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.tokenizers.autoencoder import ConvShape
from jtok.tokenizers.base_grid import BaseTokenizer
from jtok.tokenizers.bases import VQGAN, AutoencoderKL, KLConfig, VQGANConfig, open_base
from jtok.tokenizers.flextok import cut, paste
from jtok.training.tasks.image_task import UNTRAINED


class PixelGrid(nnx.Module):
    """The base that needs no file: the grid is the pixels of patches in [-1,1], and nothing is lost."""

    def __init__(self, stride: int):
        self.stride, self.channels, self.codes = stride, 3 * stride**2, 0

    def encode(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B g g E"]:
        """Patches, E = 3 stride^2."""
        b, side = images.shape[0], images.shape[1] // self.stride
        return cut(2 * images - 1, self.stride).reshape(b, side, side, -1)

    def decode(self, grid: Float[Array, "B g g E"]) -> Float[Array, "B H W 3"]:
        """Images of patches, not clipped."""
        b, side, _, width = grid.shape
        return (paste(grid.reshape(b, side * side, width), side * self.stride, self.stride) + 1) / 2


def base_config(kind: str, **shape: Any) -> ml_collections.ConfigDict:
    """`config.base`: a kind (pixels, vqgan, kl) and, of the last two, fields of `ConvShape`."""
    fields = {
        "kind": kind,
        "path": "",  # file of the base (see `open_base`), whose own shape is then taken
        "codes": 1024,  # of a vqgan
        "stride": 16,  # of pixels
        "shape": shape,
    }
    return ml_collections.ConfigDict(fields)


class FrozenBase:
    """Makes the base and binds its parameters, which a task holds as params["base"]; `channels` of its grid, its
    `stride`, and how many `codes` it has (0 for a VAE)."""

    def __init__(self, options: ml_collections.ConfigDict):
        self.options = options
        if options.kind not in ("pixels", "vqgan", "kl"):
            raise UserError(f"config.base.kind is '{options.kind}': choose pixels, vqgan or kl.")
        from_file = options.kind != "pixels" and options.path != UNTRAINED
        if from_file and not options.path:
            raise UserError(
                f"the base tokenizer (config.base, a {options.kind}) is frozen and needs a trained file: "
                "set config.base.path."
            )
        shapes = open_base(options.path) if from_file else nnx.eval_shape(lambda: self._fresh(jax.random.key(0)))
        self.channels, self.stride = shapes.channels, shapes.stride
        self.codes = shapes.codes
        self.graphdef, state = nnx.split(shapes)
        self.read = nnx.to_pure_dict(state) if from_file else None

    def _fresh(self, key: Array) -> nnx.Module:
        o = self.options
        if o.kind == "pixels":
            return PixelGrid(o.stride)
        shape = ConvShape(**{name: tuple(v) if isinstance(v, list) else v for name, v in o.shape.to_dict().items()})
        if o.kind == "kl":
            return AutoencoderKL(KLConfig(shape), nnx.Rngs(key))
        return VQGAN(VQGANConfig(shape, o.codes, shape.channels, signed=False), nnx.Rngs(key))

    def init(self, key: Array) -> dict[str, Any]:
        """Its parameters."""
        if self.read is not None:
            return self.read
        return nnx.to_pure_dict(nnx.state(self._fresh(key)))

    def bind(self, params: Mapping[str, Any]) -> BaseTokenizer:
        """The base with these parameters, no gradient among them."""
        return nnx.merge(self.graphdef, nnx.State(jax.lax.stop_gradient(dict(params))))
