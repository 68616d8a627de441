"""The mesh that a config asks for, and batches on it."""

import jax
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array

from jtok.errors import UserError
from jtok.sharding import local_parts, make_mesh, row_parts, rows
from jtok.training.task import Batch


def mesh_sizes(config: ml_collections.ConfigDict) -> dict[str, int]:
    """{"fsdp", "tensor"} of `config.mesh`; 1 each where a config does not say, as older ones do not."""
    given = config.get("mesh") or {}
    return {name: given.get(name, 1) for name in ("fsdp", "tensor")}


def mesh_of(config: ml_collections.ConfigDict) -> Mesh:
    """The mesh over all devices of all processes that `config.mesh` asks for; errors as `jtok.sharding.make_mesh`."""
    return make_mesh(**mesh_sizes(config))


def put_batch(batch: Batch, mesh: Mesh) -> dict[str, Array]:
    """This process's rows of a batch to its devices, as parts of global arrays that `data` and `fsdp` share.

    batch: the parts of the global batch that `jtok.sharding.local_parts` names, one after the other.
    """
    parts, count, sharding = local_parts(mesh), row_parts(mesh), rows(mesh)

    def put(name: str, array) -> Array:
        if array.shape[0] % len(parts):
            raise UserError(
                f"a batch of {array.shape[0]} rows ({name}) of this process must be a multiple of the {len(parts)}"
                " parts of it that its devices hold."
            )
        each = array.shape[0] // len(parts)

        def held(index: tuple[slice, ...]):
            at = parts.index((index[0].start or 0) // each)
            return array[at * each : (at + 1) * each]

        return jax.make_array_from_callback((each * count, *array.shape[1:]), sharding, held)

    with jax.transfer_guard_host_to_device("allow"):  # JAX does not count this call as explicit
        return {name: put(name, array) for name, array in batch.items()}
