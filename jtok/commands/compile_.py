"""`jtok compile`: compiles a config's training step or inference for a TPU slice, without needing the hardware."""

from __future__ import annotations

import json
from typing import Any

from absl import flags as absl_flags

from jtok.flags import Command

GIB = 2**30


def _flags(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "topology", None, "chip and shape of the slice: v5e:16x16, v6e:8x8, v4:2x2x4, v5p:4x4x4",
        flag_values=values, required=True,
    )  # fmt: skip
    absl_flags.DEFINE_bool("json", False, "print JSON", flag_values=values)


def facts(compiled: Any) -> dict[str, Any]:
    """All that is printed, as JSON values: bytes, FLOPs, seconds."""
    chips, chip, roofline = compiled.slice.chips, compiled.slice.chip, compiled.roofline()
    memory, flops, bound = compiled.memory, compiled.flops, max(roofline, key=roofline.get)
    return {
        "topology": compiled.slice.name,
        "chips": chips,
        "mesh": dict(compiled.slice.mesh.shape),
        "batch": compiled.batch,
        "memory_per_chip": {
            "peak": memory.peak, "arguments": memory.arguments, "outputs": memory.outputs,
            "temporaries": memory.temporaries, "aliased": memory.aliased, "hbm": int(chip.memory),
        },
        "flops": flops.flops,
        "macs": flops.macs,
        "flops_unknown": [*flops.unbounded_loops, *flops.unstated_kernels, *flops.uncounted],
        "collective_bytes_per_chip": compiled.traffic.bytes,
        "collective_calls": compiled.traffic.calls,
        "loops_of_unknown_length": compiled.traffic.unknown_loops,
        "estimate": {
            "seconds": roofline[bound], "bound_by": bound, "images_per_second": compiled.batch / roofline[bound],
            "parts": roofline,
            "data_sheet": {"flops": chip.flops, "bandwidth": chip.bandwidth, "links": compiled.slice.links},
        },
        "largest": {kind: [vars(a) for a in arrays] for kind, arrays in compiled.largest.items()},
        "seconds": {"trace_and_lower": compiled.lower_seconds, "compile": compiled.compile_seconds},
    }  # fmt: skip


def _run(args, config) -> int:
    if "task" not in config and "methods" in config:
        return _inference(args, config)
    from jtok.evaluation.aot.tpu_compile import compile_training

    result = facts(compile_training(config, args.topology))
    print(json.dumps(result, indent=1) if args.json else _described(result, "a step"))
    return 0


def _inference(args, config) -> int:
    """Every program of a benchmark of vision-language models, each reported as soon as it is compiled."""
    from jtok.evaluation.aot.tpu_compile_vlm import compile_inference

    what = {"prompt": "reading the prompts", "token": "a token of the answers"}
    results = []
    for method, program, compiled in compile_inference(config, args.topology):
        results.append({"method": method, "program": program, **facts(compiled)})
        if not args.json:
            print(f"{method}, {what[program]}\n{_described(results[-1], 'a run')}\n", flush=True)
    if args.json:
        print(json.dumps(results, indent=1))
    return 0


def _described(result: dict[str, Any], run: str) -> str:
    memory, estimate, seconds = result["memory_per_chip"], result["estimate"], result["seconds"]
    sent = ", ".join(f"{kind} {size / 2**20:.2f} MiB" for kind, size in result["collective_bytes_per_chip"].items())
    parts = ", ".join(f"{name} {seconds * 1e3:.3f}" for name, seconds in estimate["parts"].items())
    mesh = " x ".join(f"{name} {size}" for name, size in result["mesh"].items())
    return "\n".join(
        (
            f"{result['topology']}: {result['chips']} chips ({mesh}), batch {result['batch']}",
            f"memory per chip: {memory['peak'] / GIB:.2f} of {memory['hbm'] / GIB:.0f} GiB "
            f"({memory['arguments'] / GIB:.2f} arguments, {memory['temporaries'] / GIB:.2f} temporary)",
            f"{run}: {result['flops'] / 1e12:.3f} TFLOPs on all chips ({result['macs'] / 1e12:.3f} TMACs)",
            f"collectives per chip: {sent or 'none'}",
            f"ESTIMATE by roofline: at least {estimate['seconds'] * 1e3:.3f} ms {run}, bound by {estimate['bound_by']} "
            f"(ms: {parts}; from data-sheet peak rates, nothing measured)",
            f"traced and lowered in {seconds['trace_and_lower']:.1f} s, compiled in {seconds['compile']:.1f} s",
        )
    )


COMMAND = Command("compile", "Compile a training step or a VLM for a TPU slice: memory, traffic, estimated time.",
                  _flags, _run, config="required")  # fmt: skip
