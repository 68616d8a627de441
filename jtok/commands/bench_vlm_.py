"""`jtok bench vlm`: time to first token, time per output token, FLOPs and cache of an answer, method by method."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

from absl import flags as absl_flags

from jtok.flags import Command

#: Flags that stand for a field of the config, which they override.
_FIELDS = {
    "model": "preset with random weights (llava-1.5-7b, llava-1.5-13b, llava-cpu, llava-tiny), or a directory",
    "dtype": "float32 or bfloat16",
}
_NUMBERS = {
    "tokens": "visual tokens to keep per crop",
    "batch": "batch size in prompts",
    "answer": "length of an answer in tokens",
    "repeats": "minimum number of timed rounds",
}


def _flags(values: absl_flags.FlagValues) -> None:
    for name, text in _FIELDS.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=values)
    for name, text in _NUMBERS.items():
        absl_flags.DEFINE_integer(name, None, text, flag_values=values, lower_bound=1)
    absl_flags.DEFINE_list("methods", None, "names of methods", flag_values=values)
    absl_flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=values)


def _run(args, config) -> int:
    from jtok import compile_cache
    from jtok.evaluation.bench.vlm import bench_vlm, default_config
    from jtok.methods.reduce import UntrainedWarning

    compile_cache.enable()
    config = default_config() if config is None else config
    for name in (*_FIELDS, *_NUMBERS, "methods"):
        if getattr(args, name) is not None:
            value = getattr(args, name)
            config[name] = tuple(value) if name == "methods" else value
    _check(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedWarning)  # reported below, in the form commands use
        result = bench_vlm(config)
    for row in result["rows"]:
        if not row["trained"]:
            text = f"jtok: {row['method']} is a learned method and its parameters are random: times only."
            print(text, file=sys.stderr)
    if args.json:
        print(json.dumps(result, indent=1))
        return 0
    from rich.console import Console

    from jtok.evaluation.sweeps.pareto import table

    c, prompt = result["config"], result["prompt"]
    title = (
        f"{c['model']} ({c['dtype']}, batch {c['batch']}) on {result['device']}: {prompt['visual_tokens']} visual and "
        f"{prompt['text_tokens']} text tokens, answers of {c['answer']}"
    )
    Console().print(table([_line(row) for row in result["rows"]], title=title))
    return 0


def _check(config) -> None:
    from jtok.errors import UserError

    if config.dtype not in ("float32", "bfloat16"):
        raise UserError(f"the dtype is {config.dtype}; it must be float32 or bfloat16.")


def _line(row: dict[str, Any]) -> dict[str, Any]:
    """One method as a line of the table; times with their p10 and p90."""

    def spread(metric: str) -> str:
        return "{:.1f} ({:.1f}-{:.1f})".format(*(row[f"{metric}_ms_{q}"] for q in ("median", "p10", "p90")))

    return {
        "method": row["method"],
        "tokens": f"at most {row['visual_tokens']}" if row["adaptive"] else row["visual_tokens"],
        "first token, ms": spread("ttft"),
        "speed-up": row["ttft_speedup"],
        "by FLOPs": row["ideal_speedup"],
        "share": row["share_of_ideal"],
        "each token, ms": spread("tpot"),
        "speed-up of each": row["tpot_speedup"],
        "prefill GFLOPs": row["prefill_gflops"],
        "cache MB": row["kv_bytes"] / 1e6,
    }


COMMAND = Command("bench vlm", "Measure what an answer costs, method by method.", _flags, _run, config="optional")
