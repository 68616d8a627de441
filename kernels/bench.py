"""How fast the ops are, beside what they replace and beside what the machine can do.

`bench` times an op's backends and its baselines in alternation, in one run on one machine, and measures in the same run
how fast that machine multiplies matrices and copies memory: `roofline` is the time an op's floor would take at those
two rates, over the time it took. `tune` searches for better block sizes on the current accelerator and returns the new
row for the backend's table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import jtok.kernels
from jtok.errors import UserError
from jtok.evaluation.cost.latency import compare, measure
from jtok.kernels.baselines import baselines
from jtok.kernels.platform import target_chip

OPS = ("attention_scores", "nearest", "max_min_select", "gather", "merge")
PLATFORMS = ("tpu", "gpu")  # JAX's names of the backends that have kernels, and the names of each op's modules


def bench(
    op: str,
    shape: str,
    implementations: Sequence[str] | None = None,
    dtype: str | None = None,
    min_seconds: float = 0.5,
    roof: tuple[float, float] | None = None,
) -> list[dict[str, Any]]:
    """Time `op` at a named shape (see its `shapes.py`), one record for each implementation and baseline.

    implementations: of "xla" and "pallas"; those that run on this machine if None. Baselines are always timed.
    dtype: "float32", "bfloat16" or "float16"; float32 on a CPU and bfloat16 elsewhere if None.
    roof: what `measure_roof` returned, for many calls in one run; measured if None.

    A record: op, shape, dtype, device, implementation, ms (median), p10 and p90 (milliseconds), calls, roofline (1 is
    the machine's limit; more means that the arrays stayed in cache), and over_torch: its time over PyTorch's in the
    same run (None without PyTorch).

    Raises `UserError` for names that do not exist and for "pallas" on a machine without the kernel.
    """
    module, given = find_shape(op, shape)
    kernel_runs = jax.default_backend() in PLATFORMS
    names = implementations or (("xla", "pallas") if kernel_runs else ("xla",))
    dtype = dtype or ("bfloat16" if kernel_runs else "float32")
    arrays = given.draw(jax.random.key(0), jnp.dtype(dtype))
    calls = {name: _call(op, given, name, arrays) for name in names} | baselines(op, given, arrays)
    comparison = compare({name: (call, ()) for name, call in calls.items()}, min_seconds=min_seconds, repeats=10)
    flops, bandwidth = roof or measure_roof(dtype)
    floor = module.floor(given, itemsize=jnp.dtype(dtype).itemsize)
    least = max(floor.flops / flops, floor.bytes / bandwidth)
    torch = comparison.latencies.get("torch")
    return [
        {
            "op": op,
            "shape": shape,
            "dtype": dtype,
            "device": jax.devices()[0].device_kind,
            "implementation": name,
            "ms": latency.median * 1e3,
            "p10": latency.p10 * 1e3,
            "p90": latency.p90 * 1e3,
            "calls": latency.n,
            "roofline": least / latency.median,
            "over_torch": latency.median / torch.median if torch else None,
        }
        for name, latency in comparison.latencies.items()
    ]


def shapes_of(op: str) -> dict[str, Any]:
    """The named shapes of an op; `UserError` if there is no such op."""
    if op not in OPS:
        raise UserError(f"kernel {op!r} does not exist; choose from {', '.join(OPS)}.")
    return importlib.import_module(f"jtok.kernels.{op}.shapes").SHAPES


def find_shape(op: str, shape: str) -> tuple[Any, Any]:
    """The op's `shapes` module and the named shape in it; `UserError` where either does not exist."""
    shapes_of(op)
    module = importlib.import_module(f"jtok.kernels.{op}.shapes")
    if shape not in module.SHAPES:
        raise UserError(f"{op} has no shape {shape!r}; choose from {', '.join(module.SHAPES)}.")
    return module, module.SHAPES[shape]


def measure_roof(dtype: str) -> tuple[float, float]:
    """This machine's measured rates: floating-point operations a second in a large matmul of `dtype`, and bytes a
    second (read and written) in a large copy."""
    large = jax.default_backend() in PLATFORMS
    n, size = (8192, 2**28) if large else (2048, 2**25)
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.dtype(dtype)) for i in range(2))
    precision = "highest" if dtype == "float32" else "default"
    matmul = measure(jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision)), a, b, repeats=5)
    words, passes = jnp.zeros(size, jnp.float32), 4

    @jax.jit
    def sweep(x):  # a loop in place, lest fresh pages be counted, and an addition, lest a copy be elided
        return lax.fori_loop(0, passes, lambda _, x: x + 1, x)

    copies = measure(sweep, words, repeats=5)
    return 2 * n**3 / matmul.median, 2 * passes * words.nbytes / copies.median


def tune(op: str, shape: str, dtype: str = "bfloat16") -> dict[str, Any]:
    """Search block sizes for this machine's chip at a named shape, by changing the row of the backend's table.

    Returns chip, row (the best one, to be pasted into the table), ms, and before (milliseconds with the table's row).
    Raises `UserError` where no kernel runs on this machine.
    """
    _, given = find_shape(op, shape)
    chip = target_chip()
    if jax.default_backend() not in PLATFORMS or chip is None:
        raise UserError(
            f"there is no kernel to tune on {jax.devices()[0].device_kind}; run on a TPU or GPU with a row."
        )
    table = importlib.import_module(f"jtok.kernels.{op}.{jax.default_backend()}").BLOCKS
    arrays = given.draw(jax.random.key(0), jnp.dtype(dtype))
    old = table[chip]

    def seconds(row: tuple[int, ...]) -> float:
        table[chip] = type(old)(*row) if hasattr(old, "_fields") else tuple(row)
        try:
            return measure(_call(op, given, "pallas", arrays), repeats=20, min_seconds=0.2).median
        except jax.errors.JaxRuntimeError:  # the blocks do not fit the chip
            return float("inf")
        finally:
            table[chip] = old

    before = seconds(tuple(old))
    row, best = search_row(tuple(old), before, seconds)
    return {"op": op, "shape": shape, "chip": chip, "row": row, "ms": best * 1e3, "before": before * 1e3}


def search_row(
    row: tuple[int, ...], best: float, seconds: Callable[[tuple[int, ...]], float]
) -> tuple[tuple[int, ...], float]:
    """Halve and double one number after the other while that makes `seconds` at least 2% shorter."""
    improved = True
    while improved:
        improved = False
        for i in range(len(row)):
            for value in (row[i] // 2, row[i] * 2):
                other = (*row[:i], value, *row[i + 1 :])
                if value >= 1 and (time := seconds(other)) < 0.98 * best:
                    row, best, improved = other, time, True
    return row, best


def _call(op: str, shape: Any, implementation: str, arrays: tuple[jax.Array, ...]) -> Callable[[], Any]:
    function = getattr(jtok.kernels, op)
    compiled = jax.jit(lambda *arrays: function(*arrays, **shape.options, implementation=implementation))
    return lambda: compiled(*arrays)
