"""`jtok bench kernels`: every op compared with what it replaces and with the machine's roofline."""

from __future__ import annotations

import json
from typing import Any

from absl import flags as absl_flags

from jtok.errors import UserError
from jtok.flags import Command

COLUMNS = ("op", "shape", "dtype", "implementation", "ms", "p10", "p90", "roofline", "over_torch")


def _flags(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_list("ops", [], "names of ops (default: all)", flag_values=values)
    absl_flags.DEFINE_list("shapes", [], "named shapes of those ops (default: all)", flag_values=values)
    absl_flags.DEFINE_list("implementations", [], "xla, pallas (default: what runs here)", flag_values=values)
    absl_flags.DEFINE_string("dtype", "", "float32, bfloat16 or float16 (default: by machine)", flag_values=values)
    absl_flags.DEFINE_bool("tune", False, "search block sizes and print the table's new rows", flag_values=values)
    absl_flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=values)


def _run(args, config) -> int:
    from jtok import compile_cache
    from jtok.kernels import bench

    compile_cache.enable()
    pairs = _pairs(args.ops, args.shapes)
    if args.tune:
        rows = [{"op": op, "shape": shape, **bench.tune(op, shape, args.dtype or "bfloat16")} for op, shape in pairs]
        return _print(rows, args.json, None)
    roof: tuple[float, float] | None = None
    rows = []
    for op, shape in pairs:
        roof = roof or bench.measure_roof(args.dtype or _usual_dtype())
        rows += bench.bench(op, shape, args.implementations or None, args.dtype or None, roof=roof)
    return _print(rows, args.json, COLUMNS)


def _pairs(ops: list[str], shapes: list[str]) -> list[tuple[str, str]]:
    """(op, shape) for everything requested; a shape may belong to only one of several ops."""
    from jtok.kernels.bench import OPS, find_shape
    from jtok.kernels.bench import shapes_of as known

    for op in ops:
        known(op)
    pairs = [(op, s) for op in ops or OPS for s in known(op) if not shapes or s in shapes]
    matched = {shape for _, shape in pairs}
    for shape in shapes:
        if shape not in matched:
            if len(ops) == 1:
                find_shape(ops[0], shape)
            raise UserError(f"no op has a shape called {shape!r}: omit --shapes to see them all.")
    return pairs


def _usual_dtype() -> str:
    import jax

    from jtok.kernels.bench import PLATFORMS

    return "bfloat16" if jax.default_backend() in PLATFORMS else "float32"


def _print(rows: list[dict[str, Any]], as_json: bool, columns) -> int:
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    from rich.console import Console

    from jtok.evaluation.sweeps.pareto import table

    Console().print(table(rows, columns, title="kernels: median milliseconds; roofline 1 = what this machine can do"))
    return 0


COMMAND = Command("bench kernels", "Time every kernel against PyTorch and the machine's roofline.", _flags, _run)
