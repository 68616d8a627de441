"""`jtok show`: draws which tokens a method keeps or merges, or an image at 1, 2, 4, ... tokens of a tokenizer."""

from __future__ import annotations

import sys

from absl import flags as absl_flags

from jtok.commands.evaluate_tokenizer import base_flag
from jtok.commands.options import make_task, method_flags, parse_options, tell_if_untrained
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    method_flags(values, method="topk")
    absl_flags.DEFINE_string("image", "", "image file (default: a held-out example)", flag_values=values)
    absl_flags.DEFINE_integer("index", 0, "which held-out example", flag_values=values, lower_bound=0)
    absl_flags.DEFINE_string("reducer", "", "safetensors file of a trained reducer", flag_values=values)
    absl_flags.DEFINE_string("out", "show.png", "figure to write", flag_values=values)
    text = "draw an image at 1, 2, 4, ... tokens of this tokenizer instead: its file, or 'shipped'"
    absl_flags.DEFINE_string("tokenizer", None, text, flag_values=values)
    base_flag(values)
    text = "target PSNR of the tokenizer's adaptive rule"
    absl_flags.DEFINE_string("quality", "28dB", text, flag_values=values)


def _run(args, config) -> int:
    if args.tokenizer:
        return _prefixes(args)
    from jtok.evaluation.figures.gallery import picture_bytes, read_image, show_stages
    from jtok.methods import catalogue
    from jtok.training.weights import load_reducer
    from jtok.viz.files import write_whole

    task, params = make_task(config)
    plan = catalogue.make_plan(args.method, task.model.target(), args.keep, **parse_options(args.option))
    if args.reducer:
        plan = plan.with_params(load_reducer(args.reducer, plan), trained=True)
    tell_if_untrained(plan)
    if args.image:
        image, box = read_image(args.image, task.model.image), None
    else:
        example = task.dataset(task.config.data.eval_split)[args.index]
        image, box = example["image"], example.get("box")
    picture, said = show_stages(task, params, plan, image, box)
    write_whole(args.out, picture_bytes(picture))
    print(f"{said}; wrote {args.out}")
    return 0


def _prefixes(args) -> int:
    """Draws an image at growing numbers of a tokenizer's tokens."""
    from jtok import compile_cache
    from jtok.commands.tokenize_ import parse_quality
    from jtok.data.photographs import PHOTOGRAPHS, photograph
    from jtok.data.picture import read_picture
    from jtok.evaluation.figures.prefixes import draw_prefixes, draw_whole
    from jtok.tokenizers.codec import Codec
    from jtok.tokenizers.shipped import open_tokenizer
    from jtok.viz.pareto import save_figure

    quality = parse_quality(args.quality)
    compile_cache.enable()
    if args.image:
        picture, notes = read_picture(args.image)
        for note in notes:
            print(f"jtok show: '{args.image}': {note}", file=sys.stderr)
    else:
        names = PHOTOGRAPHS["test"]
        picture = photograph(names[args.index % len(names)], 256)
    tokenizer = open_tokenizer(args.tokenizer, args.base)
    if tokenizer.codec_ready:
        figure, said = draw_prefixes(Codec(tokenizer), picture, quality)
    else:
        figure, said = draw_whole(tokenizer, picture)
    save_figure(args.out, figure, dpi=110)
    print(f"{said}; wrote {args.out}")
    return 0


COMMAND = Command(
    "show",
    "Draw which tokens a method keeps, or an image at growing numbers of tokens.",
    _flags,
    _run,
    config="optional",
)
