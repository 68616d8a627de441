"""`jtok bench tokenizers`: images encoded and decoded per second, and the share of the chip's matmul rate reached."""

from __future__ import annotations

import json
import sys
from typing import Any

from absl import flags as absl_flags

from jtok.commands.evaluate_tokenizer import base_flag
from jtok.errors import UserError
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    text = (
        "photos, titok_l32, flextok_d12 or flextok_d18 with random weights, files, or 'shipped' (default: by machine)"
    )
    absl_flags.DEFINE_list("tokenizer", None, text, flag_values=values)
    base_flag(values)
    absl_flags.DEFINE_list("batch", ["1", "8"], "batch sizes in images", flag_values=values)
    text = "float32 or bfloat16, for the matmul and for shapes with random weights (default: by machine)"
    absl_flags.DEFINE_string("dtype", None, text, flag_values=values)
    absl_flags.DEFINE_integer("repeats", 10, "minimum number of timed calls", flag_values=values, lower_bound=1)
    absl_flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=values)


def _run(args, config) -> int:
    if not all(text.isdecimal() for text in args.batch):
        raise UserError(f"--batch={','.join(args.batch)} is not a list of numbers, such as --batch=1,8.")
    if args.dtype not in (None, "float32", "bfloat16"):
        raise UserError(f"the dtype is {args.dtype}; it must be float32 or bfloat16.")
    import jax

    from jtok import compile_cache
    from jtok.evaluation.bench.tokenizers import bench_tokenizers

    compile_cache.enable()
    small = jax.default_backend() == "cpu"
    names = args.tokenizer or (["photos"] if small else ["titok_l32", "flextok_d18"])
    dtype = args.dtype or ("float32" if small else "bfloat16")
    result = bench_tokenizers(
        names,
        [int(text) for text in args.batch],
        base=args.base,
        dtype=dtype,
        repeats=args.repeats,
        say=lambda text: print(text, file=sys.stderr),
    )
    if args.json:
        print(json.dumps(result, indent=1))
        return 0
    from rich.console import Console

    from jtok.evaluation.sweeps.pareto import table

    title = f"{result['device']}, {dtype}; a large matmul: {result['matmul_tflops']:.4g} TFLOP per second"
    Console().print(table([_line(row) for row in result["rows"]], title=title))
    return 0


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table; times with their p10 and p90."""
    return {
        "tokenizer": row["tokenizer"],
        "batch": row["batch"],
        "": row["direction"],
        "images/s": row["images_per_second"],
        "ms": "{:.4g} ({:.4g}-{:.4g})".format(*(row[f"ms_{q}"] for q in ("median", "p10", "p90"))),
        "GFLOPs an image": row["gflops_per_image"],
        "of matmul rate": f"{row['share_of_matmul_rate']:.1%}",
    }


COMMAND = Command("bench tokenizers", "Measure how fast tokenizers encode and decode.", _flags, _run)
