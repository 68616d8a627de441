"""Cloud TPUs by the names used here (v5e-8), and what gcloud, GKE and Vertex call them.

Sizes are those of the product names: cores for v2 to v5p (v4-8 has 4 chips), chips for v5e and v6e. Sources: Google
Cloud's pages "TPU versions", "TPU software versions" and "Plan TPUs in GKE".
"""

from __future__ import annotations

import dataclasses
import re

from jtok.errors import UserError

_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBE = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4"}
_OLD = {8: "", 32: "", 128: "", 512: ""}


@dataclasses.dataclass(frozen=True)
class _Kind:
    accelerator: str  # gcloud's accelerator type, before the size
    version: str  # software of a TPU VM
    topologies: dict[int, str]  # size -> GKE's topology
    gke: str = ""  # GKE's node label; "" where it has none
    vertex: str = ""  # what XManager and Vertex call it; "" where they do not know it


_KINDS = {
    "v2": _Kind("v2", "tpu-ubuntu2204-base", _OLD, vertex="TPU_V2"),
    "v3": _Kind("v3", "tpu-ubuntu2204-base", _OLD, vertex="TPU_V3"),
    "v4": _Kind("v4", "tpu-ubuntu2204-base", _CUBE, "tpu-v4-podslice"),
    "v5e": _Kind("v5litepod", "v2-alpha-tpuv5-lite", _FLAT, "tpu-v5-lite-podslice"),
    "v5p": _Kind("v5p", "v2-alpha-tpuv5", _CUBE, "tpu-v5p-slice"),
    "v6e": _Kind("v6e", "v2-alpha-tpuv6e", _FLAT, "tpu-v6e-slice"),
}


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A TPU slice: `name` as given; `accelerator` and `version` for gcloud; the rest for GKE and Vertex."""

    name: str
    size: int
    accelerator: str
    version: str
    gke: str
    topology: str
    vertex: str

    @property
    def chips(self) -> int:
        """How many chips it has, by its topology."""
        sides = [int(side) for side in self.topology.split("x")]
        return sides[0] * sides[1] * (sides[2] if len(sides) > 2 else 1)

    @property
    def hosts(self) -> int:
        """GKE's nodes: one for up to 8 chips of v5e and v6e, else one for every 4."""
        return 1 if self.chips <= 8 and len(self.topology.split("x")) == 2 else self.chips // 4


def find_tpu(name: str, platform: str) -> Tpu:
    """The TPU of that name. Raises UserError if there is none, or if the platform does not know it."""
    match = re.fullmatch(r"(v\d\w*)-(\d+)", name)
    kind = _KINDS.get(match[1]) if match else None
    if kind is None:
        raise UserError(f"there is no TPU '{name}': give --tpu=KIND-SIZE with one of {', '.join(_KINDS)}, as in v5e-8")
    size = int(match[2])
    if size not in kind.topologies:
        raise UserError(f"there is no {match[1]} of size {size}: choose {', '.join(map(str, kind.topologies))}")
    if platform == "vertex" and not kind.vertex:
        raise UserError(f"Vertex, as XManager knows it, has v2 and v3 only, not {name}: use --platform=tpu_vm or gke")
    if platform == "gke" and not kind.gke:
        raise UserError(f"GKE has no {match[1]}: choose {', '.join(k for k, v in _KINDS.items() if v.gke)}")
    accelerator, topology = f"{kind.accelerator}-{size}", kind.topologies[size]
    return Tpu(name, size, accelerator, kind.version, kind.gke, topology, kind.vertex)
