"""`jtok evaluate`: accuracy and cost of one method on one model."""

from __future__ import annotations

import json

from absl import flags as absl_flags

from jtok.commands.options import make_task, method_flags, parse_options
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    method_flags(values)
    absl_flags.DEFINE_integer("images", 1000, "held-out images", flag_values=values, lower_bound=1)
    absl_flags.DEFINE_string("split", "test", "split to evaluate on", flag_values=values)
    absl_flags.DEFINE_string(
        "reducer", "", "safetensors file of a trained reducer (from jtok train)", flag_values=values
    )
    absl_flags.DEFINE_bool("json", False, "print JSON", flag_values=values)


def _run(args, config) -> int:
    from jtok import registry
    from jtok.evaluation.sweep import Cell, held_out, run_cell
    from jtok.training.weights import load_reducer

    task, params = make_task(config)
    options = parse_options(args.option)
    plan = registry.make_plan(args.method, task.model.target(), args.keep, **options)  # before any image is read
    trained = {"model": params["model"], "plan": load_reducer(args.reducer, plan)} if args.reducer else None
    cell = Cell(args.method, args.keep, options, trained)
    record = run_cell(task, params, cell, held_out(task, args.split, args.images))
    if args.json:
        print(json.dumps(record, indent=2))
        return 0
    what = "unreduced" if args.method == "none" else f"{args.method}, keep {args.keep:g}"
    print(f"{what}: accuracy {record['accuracy']:.2%} ({record['correct']} of {record['total']})")
    print(
        f"tokens per block {record['tokens_per_block']}, at the end {record['tokens_end']}; {record['gmacs']:.4f} GMACs"
    )
    for batch in (1, 8):
        time = record[f"latency_ms_b{batch}"]
        print(f"batch {batch}: {time['median']:.2f} ms (p10 {time['p10']:.2f}, p90 {time['p90']:.2f})")
    return 0


COMMAND = Command("evaluate", "Measure accuracy and cost of one method.", _flags, _run, config="optional")
