"""`jtok show`: draws which tokens a method keeps or merges, stage by stage."""

from __future__ import annotations

from absl import flags as absl_flags

from jtok.commands.options import make_task, method_flags, parse_options
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    method_flags(values, method="topk", keep=0.3)
    absl_flags.DEFINE_string("image", "", "image file (default: a held-out example)", flag_values=values)
    absl_flags.DEFINE_integer("index", 0, "which held-out example", flag_values=values, lower_bound=0)
    absl_flags.DEFINE_string("reducer", "", "safetensors file of a trained reducer", flag_values=values)
    absl_flags.DEFINE_string("out", "show.png", "picture to write", flag_values=values)


def _run(args, config) -> int:
    from jtok import registry
    from jtok.training.weights import load_reducer
    from jtok.viz.files import write_whole
    from jtok.viz.gallery import picture_bytes, read_image, show_stages

    task, params = make_task(config)
    plan = registry.make_plan(args.method, task.model.target(), args.keep, **parse_options(args.option))
    if args.reducer:
        plan = plan.with_params(load_reducer(args.reducer, plan))
    if args.image:
        image, box = read_image(args.image, task.model.image), None
    else:
        example = task.dataset("test")[args.index]
        image, box = example["image"], example.get("box")
    picture, said = show_stages(task, params, plan, image, box)
    write_whole(args.out, picture_bytes(picture))
    print(f"{said}; wrote {args.out}")
    return 0


COMMAND = Command("show", "Draw which tokens a method keeps, stage by stage.", _flags, _run, config="optional")
