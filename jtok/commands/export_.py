"""`jtok export`: a tower for other libraries (safetensors), or with its plan as a program (stablehlo)."""

from __future__ import annotations

from absl import flags as absl_flags

from jtok.commands.options import method_flags, parse_options
from jtok.errors import UserError
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    method_flags(values, keep=1.0)
    formats = ["safetensors", "stablehlo"]
    absl_flags.DEFINE_enum("format", "safetensors", formats, "what is written", flag_values=values)
    text = "file of jtok, Hugging Face directory, directory of a run, or 'shipped'"
    absl_flags.DEFINE_string("weights", None, text, flag_values=values, required=True)
    absl_flags.DEFINE_string("reducer", "", "safetensors file of a trained reducer", flag_values=values)
    absl_flags.DEFINE_string("out", None, "directory to write", flag_values=values, required=True)
    names = ["transformers", "timm"]
    absl_flags.DEFINE_enum("names", "transformers", names, "names of tensors (safetensors)", flag_values=values)
    storage = ["float32", "bfloat16"]
    absl_flags.DEFINE_enum("storage", "float32", storage, "type of tensors (safetensors)", flag_values=values)
    text = "one program for each accelerator, with kernels and a fixed batch (stablehlo)"
    absl_flags.DEFINE_bool("kernels", False, text, flag_values=values)
    absl_flags.DEFINE_integer("batch", 1, "images at once, with --kernels", flag_values=values, lower_bound=1)


def _run(args, config) -> int:
    from jtok.export import source, write

    if args.format == "safetensors" and (args.method != "none" or args.kernels):
        raise UserError("weights carry no plan and no kernels: leave those flags away, or use --format=stablehlo.")
    given = source.read(args.weights, args.method, args.keep, parse_options(args.option), args.reducer)
    if args.format == "safetensors":
        out = write.safetensors(given, args.out, args.names, args.storage)
    else:
        out = write.stablehlo(given, args.out, kernels=args.kernels, batch=args.batch)
    print(f"wrote {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return 0


COMMAND = Command("export", "Write a tower for other libraries, or with its plan as a program.", _flags, _run)
