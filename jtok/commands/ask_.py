"""`jtok ask`: answers a question about an image, with as many visual tokens as requested."""

from __future__ import annotations

import dataclasses
import sys

from absl import flags as absl_flags

from jtok.commands.options import mesh_flags, method_flags, parse_mesh, reduced
from jtok.commands.plan_file import method_of, plan_flag
from jtok.errors import UserError
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    method_flags(values)
    plan_flag(values)
    mesh_flags(values)
    text = "directory of a Hugging Face checkpoint (default: the small model that comes with jtok)"
    absl_flags.DEFINE_string("model", None, text, flag_values=values)
    absl_flags.DEFINE_multi_string("image", [], "image file; repeatable", flag_values=values)
    text = "visual tokens to keep per crop, in place of --keep"
    absl_flags.DEFINE_integer("tokens", None, text, flag_values=values)
    absl_flags.DEFINE_string("reducer", "", "safetensors file of a trained reducer", flag_values=values)
    absl_flags.DEFINE_string("show", None, "figure to write: which visual tokens were kept", flag_values=values)
    absl_flags.DEFINE_integer(
        "max_new_tokens", 128, "maximum length of the answer in tokens", flag_values=values, lower_bound=1
    )
    absl_flags.DEFINE_float("temperature", 0.0, "sampling temperature; 0 = greedy", flag_values=values)
    absl_flags.DEFINE_float(
        "top_p", 1.0, "sample from the most likely tokens with this total probability", flag_values=values
    )
    absl_flags.DEFINE_integer("seed", 0, "random seed", flag_values=values)
    kinds = ["float32", "bfloat16"]
    absl_flags.DEFINE_enum("dtype", "float32", kinds, "dtype of the decoder and of activations", flag_values=values)


def _run(args, config) -> int:
    if not (args.question or "").strip():
        raise UserError('there is no question: give it last, in quotes, such as jtok ask --image=FILE "What is this?"')
    if not args.image:
        raise UserError("there is no image: add --image=FILE.")
    from jtok import compile_cache
    from jtok.models.decoder.sampling import Sampling
    from jtok.models.vlm import asking
    from jtok.models.vlm.shipped import shipped
    from jtok.sharding import place

    compile_cache.enable()
    sampling, mesh = Sampling(args.temperature, args.top_p), parse_mesh(args)
    model = asking.describe(args.model, dtype=args.dtype) if args.model else shipped(dtype=args.dtype)
    method, options = method_of(args)
    asked = {"tokens": args.tokens, "keep": args.keep, **options}
    model = reduced(model, method, how="--reducer=FILE", weights=args.reducer or None, **asked)
    inputs = model.inputs(args.question, args.image)
    if args.model:
        asking.rehearse(model, inputs, args.max_new_tokens)
        model = asking.with_weights(model, args.model, dtype=args.dtype, mesh=mesh)
    elif mesh is not None:
        model = dataclasses.replace(model, params=place(model.params, mesh))
    reading, state = asking.read(model, inputs, max_new_tokens=args.max_new_tokens, seed=args.seed)
    if args.show:
        _show(model, inputs, reading, args)
    _stream(model.speak(state, args.max_new_tokens, sampling=sampling))
    return 0


def _show(model, inputs, reading, args) -> None:
    from jtok.evaluation.figures.gallery import picture_bytes
    from jtok.evaluation.figures.visual import draw_reading
    from jtok.viz.files import write_whole

    picture = draw_reading(model, inputs, reading, title=args.question)
    print(f"wrote {write_whole(args.show, picture_bytes(picture))}", file=sys.stderr)


def _stream(pieces) -> None:
    """Prints pieces as they come, without the space that many tokenizers begin with."""
    begun = False
    for piece in pieces:
        piece = piece if begun else piece.lstrip()
        begun = begun or bool(piece)
        print(piece, end="", flush=True)
    print()


COMMAND = Command("ask", "Answer a question about an image.", _flags, _run, argument="question")
