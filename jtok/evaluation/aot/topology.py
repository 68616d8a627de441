"""TPU slices that this machine does not have, described by the libtpu wheel, to compile programs for."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, Mesh

from jtok.errors import UserError
from jtok.kernels.platform import CHIPS, Chip
from jtok.sharding import make_mesh

#: Bytes a second that all links of one chip carry together: 1600 and 3200 Gbps in the data sheets of v5e and v6e,
#: 4800 Gbps in that of v5p (cloud.google.com/tpu/docs), six links of 50 GB/s for v4 (arXiv:2304.01433).
LINKS = {"v4": 300e9, "v5e": 200e9, "v5p": 600e9, "v6e": 400e9}

#: Slices that are offered of the chips whose pods are flat (cloud.google.com/tpu/docs/v5e and /v6e).
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one kind, joined; `mesh` is that of `jtok.sharding`."""

    name: str
    chip: Chip
    links: float
    mesh: Mesh

    @property
    def chips(self) -> int:
        return self.mesh.size

    def abstract(self) -> AbstractMesh:
        """The mesh for tracing, which knows what chip the program is for."""
        device = self.mesh.devices.flat[0]
        abstract = AbstractDevice(device_kind=device.device_kind, num_cores=device.num_cores, platform="tpu")
        sizes, kinds = self.mesh.axis_sizes, self.mesh.axis_types
        return AbstractMesh(sizes, self.mesh.axis_names, axis_types=kinds, abstract_device=abstract)


def describe(topology: str, *, fsdp: int = 1, tensor: int = 1) -> Slice:
    """The slice that `topology` names, such as `v5e:16x16` or `v5p:4x4x4`, with its chips in a mesh.

    Raises UserError for a name that is not a topology or is not offered, for a mesh that does not divide its chips, and
    where libtpu is not installed.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology)
    chip, shape = match.groups() if match else (None, None)
    if chip not in LINKS:
        raise UserError(f"there is no topology '{topology}': write a chip of {', '.join(LINKS)} and a shape, v5e:4x4.")
    if chip in ("v5e", "v6e") and shape not in _FLAT:
        raise UserError(f"there is no topology '{topology}': {chip} comes as {', '.join(_FLAT)}.")
    # one device a chip, as JAX has it on such a machine
    extra = {"chip_config_name": "megacore"} if chip == "v4" else {}
    try:
        with _silent():
            devices = _devices(topology, extra)
    except (ImportError, FileNotFoundError):
        raise UserError("compiling for a TPU needs the libtpu wheel: pip install 'jtok[tpu]'.") from None
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"libtpu gives no topology '{topology}' ({str(error).splitlines()[0]}).") from None
    return Slice(topology, CHIPS[chip], LINKS[chip], make_mesh(fsdp, tensor, devices))


def _devices(topology: str, extra: dict[str, Any]) -> list[Any]:
    # libtpu looks for a cloud machine's metadata and takes a lock on the chip; there is neither here.
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        os.environ.setdefault(name, "1")
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **extra).devices


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches stderr: libtpu writes there, below Python, that it is not on a TPU machine."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
