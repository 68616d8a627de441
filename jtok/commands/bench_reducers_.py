"""`jtok bench reducers`: what the reduction costs on its own."""

from __future__ import annotations

import json
from typing import Any

from absl import flags as absl_flags

from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_list("methods", [], "names of methods (default: the whole catalogue)", flag_values=values)
    absl_flags.DEFINE_list("sides", ["14", "24"], "patches per side (14: N=197, 24: N=577)", flag_values=values)
    absl_flags.DEFINE_list("widths", ["384", "1024"], "features per token", flag_values=values)
    absl_flags.DEFINE_list("batches", ["1", "8"], "batch sizes in images", flag_values=values)
    absl_flags.DEFINE_float("keep", None, "keep ratio (default: each method's own)", flag_values=values)
    absl_flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=values)


def _run(args, config) -> int:
    from jtok import compile_cache
    from jtok.evaluation.bench.reducers import bench_reducers
    from jtok.evaluation.sweeps.pareto import table
    from jtok.methods import catalogue

    compile_cache.enable()
    methods = args.methods or [name for name in catalogue.methods() if catalogue.facts(name).alone]
    for name in methods:
        catalogue.find(name)
    sides, widths, batches = (_integers(name, getattr(args, name)) for name in ("sides", "widths", "batches"))
    rows = bench_reducers(methods, sides, widths, batches, args.keep)
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    from rich.console import Console

    asked = "" if args.keep is None else f", keep {args.keep:g}"
    Console().print(
        table([_line(row) for row in rows], title=f"milliseconds per call of a method's first reducer{asked}")
    )
    return 0


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: patches out as a cap where the number depends on the image."""
    most = "at most " if row["adaptive"] else ""
    line = {name: value for name, value in row.items() if name not in ("adaptive", "asked")}
    return line | {"patches_out": f"{most}{row['patches_out']}"}


def _integers(name: str, values: list[str]) -> list[int]:
    from jtok.errors import UserError

    if not values or not all(v.isdigit() and int(v) > 0 for v in values):
        raise UserError(f"--{name}={','.join(values)} must be positive whole numbers, separated by commas.")
    return [int(v) for v in values]


COMMAND = Command("bench reducers", "Time every reducer on its own.", _flags, _run)
