"""Programs (StableHLO) that run wherever JAX does, without jtok: a model with its parameters and its plan inside."""

from __future__ import annotations

import dataclasses
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
from jtok.models.towers.vit import ViT
from jtok.training.tasks.classify import normalise

PLATFORMS = ("cpu", "tpu", "cuda")

#: Accelerators with kernels: the platform, and a device whose block sizes the program is to have.
ACCELERATORS = {"tpu": "TPU v5 lite", "cuda": "NVIDIA H100"}


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to export.

    name: of the file. apply: arrays with a leading batch axis -> {name: array with a leading batch axis}, where no row
    depends on the others. row: shape and type of each argument, without the batch axis.
    """

    name: str
    apply: Callable[..., dict[str, jax.Array]]
    row: tuple[jax.ShapeDtypeStruct, ...]

    def arguments(self, batch: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes and types of the arguments for `batch` rows."""
        return tuple(jax.ShapeDtypeStruct((batch, *a.shape), a.dtype) for a in self.row)


def tower_program(source: Source) -> Program:
    """A tower with its plan: images [B,H,W,C] -> tokens, owner and, where there are any, pooled and logits.

    images: uint8 where the weights record their normalisation, else float32 and normalised. Raises UserError
    for a tower of packed patches.
    """
    c, statistics = source.config, source.statistics
    if c.packed:
        raise UserError("a packed tower takes patches with shapes and masks: only towers of images are programs.")
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: ViT(c, nnx.Rngs(0))), nnx.Param)

    def apply(images: jax.Array) -> dict[str, jax.Array]:
        pixels = images if statistics is None else normalise(images, *statistics)
        output = nnx.merge(graphdef, nnx.State(source.params))(pixels, source.plan)
        named = {
            "tokens": output.tokens.x,
            "owner": output.tokens.owner,
            "pooled": output.pooled,
            "logits": output.logits,
        }
        return {name: a for name, a in named.items() if a is not None}

    kind = jnp.float32 if statistics is None else jnp.uint8
    return Program("model", apply, (jax.ShapeDtypeStruct((c.image, c.image, c.channels), kind),))


def portable(program: Program, batch: int = 0) -> export.Exported:
    """One program for CPU, TPU and CUDA, without kernels, for `batch` rows or (0) any number.

    No row depends on its batch, so the program for any number is that of one row, mapped over the batch.
    """

    def every(*arguments: jax.Array) -> dict[str, jax.Array]:
        def one(*row: jax.Array) -> dict[str, jax.Array]:
            return jax.tree.map(lambda a: a[0], program.apply(*(a[None] for a in row)))

        return jax.vmap(one)(*arguments)

    rows = batch or export.symbolic_shape("batch")[0]
    with plain():
        made = jax.jit(program.apply if batch else every)
        return export.export(made, platforms=PLATFORMS)(*program.arguments(rows))


def with_kernels(program: Program, platform: str, batch: int) -> export.Exported:
    """The program for one kind of accelerator ("tpu" or "cuda") with its kernels and a fixed number of rows."""
    device = AbstractDevice(device_kind=ACCELERATORS[platform], num_cores=1, platform=platform)
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        # JAX promises nothing about Triton's calls between releases; the card names the release they are for
        unchecked = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
        make = export.export(jax.jit(program.apply), platforms=(platform,), disabled_checks=unchecked)
        return make(*program.arguments(batch))


def serialise(program: export.Exported) -> bytes:
    """The bytes of a program's file. Raises UserError without the flatbuffers package."""
    try:
        return bytes(program.serialize())
    except ImportError:
        raise UserError("writing a program needs the flatbuffers package: pip install flatbuffers.") from None
