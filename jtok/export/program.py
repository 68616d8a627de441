"""A tower with its plan as a program (StableHLO) that runs wherever JAX does, without jtok."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export
from jax.sharding import AbstractDevice, AbstractMesh

from jtok.errors import UserError
from jtok.export.source import Source
from jtok.kernels.platform import plain
from jtok.models.vit import ViT
from jtok.training.classify import normalise

PLATFORMS = ("cpu", "tpu", "cuda")

#: Accelerators with kernels: the platform, and a device whose block sizes the program is to have.
ACCELERATORS = {"tpu": "TPU v5 lite", "cuda": "NVIDIA H100"}


def function(source: Source) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """The program's function: images [B,H,W,C] -> what it gives (`outputs`).

    images: uint8 where the weights tell how they are to be normalised, else float32 and normalised.
    """
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: ViT(source.config, nnx.Rngs(0))), nnx.Param)
    statistics = source.statistics

    def apply(images: jax.Array) -> dict[str, jax.Array]:
        pixels = images if statistics is None else normalise(images, *statistics)
        found = nnx.merge(graphdef, nnx.State(source.params))(pixels, source.plan)
        named = {"tokens": found.tokens.x, "owner": found.tokens.owner, "pooled": found.pooled, "logits": found.logits}
        return {name: a for name, a in named.items() if a is not None}

    return apply


def image_type(source: Source) -> Any:
    return jnp.float32 if source.statistics is None else jnp.uint8


def portable(source: Source) -> export.Exported:
    """One program for CPU, TPU and CUDA and any number of images, without kernels.

    No row depends on its batch, so the program is that of one image, mapped over the batch.
    """
    one = function(source)
    every = jax.vmap(lambda image: jax.tree.map(lambda a: a[0], one(image[None])))
    (batch,) = export.symbolic_shape("batch")
    with plain():
        return export.export(jax.jit(every), platforms=PLATFORMS)(_images(source, batch))


def with_kernels(source: Source, platform: str, batch: int) -> export.Exported:
    """The program for one kind of accelerator ("tpu" or "cuda") with its kernels and a fixed number of images."""
    device = AbstractDevice(device_kind=ACCELERATORS[platform], num_cores=1, platform=platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        # JAX promises nothing about Triton's calls between releases; the card names the release they are for
        unchecked = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
        make = export.export(jax.jit(function(source)), platforms=(platform,), disabled_checks=unchecked)
        return make(_images(source, batch))


def serialise(program: export.Exported) -> bytes:
    """The bytes of a program's file. Raises UserError without the flatbuffers package."""
    try:
        return bytes(program.serialize())
    except ImportError:
        raise UserError("writing a program needs the flatbuffers package: pip install flatbuffers.") from None


def _images(source: Source, batch: Any) -> jax.ShapeDtypeStruct:
    c = source.config
    if c.packed:
        raise UserError("a packed tower takes patches with shapes and masks: only towers of images are programs.")
    return jax.ShapeDtypeStruct((batch, c.image, c.image, c.channels), image_type(source))
