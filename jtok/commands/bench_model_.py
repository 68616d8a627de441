"""`jtok bench model`: the measured speed-up of a plan, next to the one its FLOPs predict."""

from __future__ import annotations

import json
import sys

from absl import flags as absl_flags

from jtok.commands.options import method_flags, parse_options
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    method_flags(values, method="tome")
    absl_flags.DEFINE_string("model", "vit_s16", "preset of a vision tower", flag_values=values)
    absl_flags.DEFINE_integer("image", None, "image side in pixels (default: the preset's)", flag_values=values)
    absl_flags.DEFINE_integer("batch", 8, "batch size in images", flag_values=values, lower_bound=1)
    absl_flags.DEFINE_bool("json", False, "print JSON", flag_values=values)


def _run(args, config) -> int:
    from jtok import compile_cache
    from jtok.evaluation.bench.reducers import bench_model

    compile_cache.enable()
    result = bench_model(args.model, args.method, args.keep, parse_options(args.option), args.batch, args.image)
    if args.json:
        print(json.dumps(result, indent=1))
        return 0
    for name, ms in result["ms"].items():
        macs = result["gmacs"][name]
        print(f"{name}: {ms['median']:.1f} ms (p10 {ms['p10']:.1f}, p90 {ms['p90']:.1f}), {macs:.3f} GMACs per image")
    if not result["trained"]:
        print(f"jtok: {args.method} is a learned method and its parameters are random: times only.", file=sys.stderr)
    most = "at most " if result["adaptive"] else ""
    print(f"{args.method}{', ' if result['asked'] else ''}{result['asked']}: {most}{result['cap']} patches are left")
    low, high = result["speedup_low"], result["speedup_high"]
    print(
        f"speed-up {result['speedup']:.2f} ({low:.2f} to {high:.2f}); by MACs {result['ideal_speedup']:.2f}; "
        f"share of the ideal {result['share_of_ideal']:.2f}"
    )
    return 0


COMMAND = Command("bench model", "Compare a tower with a plan to the same tower without one.", _flags, _run)
