"""Which chip a program is built for, which backend an op takes there, and how large its blocks are.

Every op offers up to three functions with one signature: `xla` (the plain definition, runs anywhere), `tpu` and `gpu`
(Pallas). `dispatch` picks by the platform the program is *lowered* for, not by the host's backend, so a program
compiled ahead of time for a pod holds the pod's kernels.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AxisType, PartitionSpec

from jtok.errors import UserError
from jtok.kernels.transforms import vary, varying_over

Implementation = Literal["xla", "pallas"] | None
IMPLEMENTATIONS = (None, "xla", "pallas")


@dataclass(frozen=True)
class Chip:
    """Published peak rates of one accelerator (per chip, dense): the roof of the roofline.

    flops: bfloat16 multiply-adds counted as two operations, per second. bandwidth: bytes of device memory per second.
    memory: bytes of device memory. on_chip: bytes of VMEM per core (TPU) or shared memory per multiprocessor (GPU).
    """

    name: str
    flops: float
    bandwidth: float
    memory: float
    on_chip: int


# Vendors' data sheets: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e); NVIDIA A100 80GB SXM, H100 SXM5, B200 (HGX).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 1.2288e12, 32 * 2**30, 16 * 2**20),
        Chip("v5e", 197e12, 0.819e12, 16 * 2**30, 128 * 2**20),
        Chip("v5p", 459e12, 2.765e12, 95 * 2**30, 64 * 2**20),
        Chip("v6e", 918e12, 1.640e12, 32 * 2**30, 128 * 2**20),
        Chip("ampere", 312e12, 2.039e12, 80e9, 164 * 2**10),
        Chip("hopper", 989e12, 3.35e12, 80e9, 228 * 2**10),
        Chip("blackwell", 2250e12, 8.0e12, 180e9, 228 * 2**10),
    )
}

#: Axes of a mesh over which the rows of a batch are split.
BATCH_AXES = ("data", "fsdp")

_TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5e": "v5e",
    "TPU v5 lite": "v5e",
    "TPU v5p": "v5p",
    "TPU v5": "v5p",
    "TPU v6e": "v6e",
    "TPU v6 lite": "v6e",
}
_GPU_WORDS = {"A100": "ampere", "H100": "hopper", "H200": "hopper", "GH200": "hopper", "B200": "blackwell"}


def chip_of(device_kind: str) -> str | None:
    """The row name in `CHIPS` of a JAX `device_kind`, None for a chip (or a CPU) that has no row."""
    if device_kind in _TPU_KINDS:
        return _TPU_KINDS[device_kind]
    words = device_kind.replace("-", " ").split()
    return next((name for word, name in _GPU_WORDS.items() if word in words), None)


def target_chip() -> str | None:
    """The chip this trace is for: the abstract mesh's device when compiling ahead of time, else the first local one."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    return chip_of(abstract.device_kind if abstract is not None else jax.devices()[0].device_kind)


_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """What is traced inside takes `xla` everywhere (unless an op is given "pallas"): for programs of any platform."""
    before = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(before)


def partitioned() -> bool:
    """Whether this trace is under a mesh of several devices over which the compiler partitions it automatically."""
    mesh = jax.sharding.get_abstract_mesh()
    split = (n for n, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True) if kind != AxisType.Manual)
    return math.prod(split) > 1


def by_rows(function: Callable[..., Any], *args: Any, shared: Sequence[Any] = ()) -> Any:
    """`function(*args, *shared)`, each device of a mesh that the batch is split over doing its rows.

    args: arrays whose first axis is the batch, or None; so are the results. shared: arrays that every row needs whole,
    or None. The compiler splits no Pallas kernel, and would gather the whole batch for a loop over pieces of it. Under
    axes of type Explicit the rows stay where the first array's are, and any other axis is gathered. Without such a
    mesh, or where it does not divide the batch, this is a plain call.
    """
    mesh = jax.sharding.get_abstract_mesh()
    known = list(zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True))
    free = {name: n for name, n, kind in known if kind == AxisType.Auto}
    axes = {name: n for name, n in free.items() if name in BATCH_AXES and n > 1}
    explicit = tuple(name for name, _, kind in known if kind == AxisType.Explicit)
    everything = (*args, *shared)
    if args[0].shape[0] % math.prod(axes.values()):
        axes = {}
    if not axes and not explicit:
        together = varying_over(*everything)
        return function(*(vary(together, x) for x in everything))
    # Mosaic refuses a kernel while any axis is left to the compiler, be it of one device; in the specs, such an axis
    # saves the backward pass a sum over nobody.
    mine = tuple(name for name, n in free.items() if name in axes or n == 1)
    typed = _rows_of(args[0]) if explicit else ()
    if explicit:  # types name the explicit axes only
        wanted = [PartitionSpec(typed or None)] * len(args) + [PartitionSpec()] * len(shared)
        everything = [
            None if x is None else jax.sharding.reshard(x, spec) for x, spec in zip(everything, wanted, strict=True)
        ]
    rows = PartitionSpec((*typed, *mine) or None)
    specs = (rows,) * len(args) + (PartitionSpec(),) * len(shared)
    split = jax.shard_map(function, in_specs=specs, out_specs=rows, axis_names={*mine, *explicit}, check_vma=False)
    return split(*everything)


def _rows_of(x: Any) -> tuple[str, ...]:
    """The explicit axes of the mesh over which the type of an array says that its first axis is split."""
    names = jax.typeof(x).sharding.spec[0]
    return () if names is None else names if isinstance(names, tuple) else (names,)


def block_sizes(table: Mapping[str, Any], default: str) -> Any:
    """The row of an op's block-size `table` (chip name -> row) for the chip this trace is for, else for `default`."""
    return table.get(target_chip(), table[default])


def dispatch(
    op: str,
    *args: Any,
    xla: Callable[..., Any],
    tpu: Callable[..., Any] | None = None,
    gpu: Callable[..., Any] | None = None,
    implementation: Implementation = None,
) -> Any:
    """Call the backend of `op` for the platform being lowered for. All branches return one tree of shapes and dtypes.

    `implementation=None` takes the Pallas kernel where there is one and `xla` elsewhere, and never fails. Under `plain`
    it takes `xla`, and so it does in a program that the compiler splits over several devices (`partitioned`), since no
    compiler splits a Pallas kernel: `by_rows` has each device do its own rows. "xla" forces the plain definition.
    "pallas" forces the kernel, and raises a `UserError` when the program is lowered for a platform without one. Put the
    call under the op's `custom_jvp`. A backend that cannot take these arguments is None.
    """
    check_implementation(op, implementation)
    if implementation == "xla" or (implementation is None and (_plain.get() or partitioned())):
        return xla(*args)
    kernels = {name: function for name, function in (("tpu", tpu), ("cuda", gpu)) if function is not None}
    if implementation is None:
        return lax.platform_dependent(*args, default=xla, **kernels) if kernels else xla(*args)
    names = {"tpu": "TPU", "cuda": "CUDA GPUs"}
    have = f"only on {' and '.join(names[name] for name in kernels)}" if kernels else "nowhere with these arguments"
    message = (
        f"{op}: implementation='pallas' runs {have}, and this program is built for another platform;"
        f" pass implementation=None (the fastest that runs here) or 'xla'."
    )

    def refuse(*args: Any) -> Any:
        shapes = jax.eval_shape(xla, *args)
        token = _refuse_p.bind(message=message)
        return jax.tree.map(lambda s: lax.full(s.shape, token.astype(s.dtype)), shapes)

    return lax.platform_dependent(*args, default=refuse, **kernels)


def check_implementation(op: str, implementation: Any) -> None:
    """Raise a `UserError` unless `implementation` is None, "xla" or "pallas"."""
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"{op}: implementation={implementation!r} is not known; pass None, 'xla' or 'pallas'.")


# A value that exists in a trace and cannot be lowered: a forced backend fails when, and only when, the program is
# built for a platform without it.
_refuse_p = Primitive("pallas_kernel_has_no_such_platform")
_refuse_p.def_abstract_eval(lambda *, message: jax.core.ShapedArray((), "float32"))


@_refuse_p.def_impl
def _refuse_eagerly(*, message: str) -> Any:
    raise UserError(message)


def _refuse_lowering(ctx: Any, *, message: str) -> Any:
    raise UserError(message)


mlir.register_lowering(_refuse_p, _refuse_lowering)
