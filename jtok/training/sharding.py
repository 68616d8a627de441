"""Where arrays live: rows of a batch split over the mesh axis `data`, parameters on every device."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jtok.errors import UserError
from jtok.training.task import Batch


def data_mesh() -> Mesh:
    """All devices of all processes along one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def shardings(state: PyTree[Array], mesh: Mesh) -> PyTree[NamedSharding]:
    """The one rule that places a state: every leaf on every device."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), state)


def put_batch(batch: Batch, mesh: Mesh) -> dict[str, Array]:
    """This process's rows of a batch to the devices, as parts of global arrays split along `data`."""
    rows = NamedSharding(mesh, PartitionSpec("data"))
    devices = jax.local_device_count()
    for name, array in batch.items():
        if array.shape[0] % devices:
            raise UserError(f"a batch of {array.shape[0]} rows ({name}) must be a multiple of the {devices} devices")
    with jax.transfer_guard_host_to_device("allow"):  # with several processes JAX does not count this call as explicit
        return {name: jax.make_array_from_process_local_data(rows, array) for name, array in batch.items()}
