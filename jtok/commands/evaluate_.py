"""`jtok evaluate`: accuracy and cost of one method on one model, or what a tokenizer keeps of images at what cost."""

from __future__ import annotations

import dataclasses
import json

from absl import flags as absl_flags

from jtok.commands.evaluate_tokenizer import tokenizer_evaluation_flags
from jtok.commands.options import (
    described,
    make_task,
    mesh_flags,
    method_flags,
    parse_mesh,
    tell_if_untrained,
)
from jtok.commands.plan_file import method_of, plan_flag
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    method_flags(values)
    plan_flag(values)
    mesh_flags(values)
    absl_flags.DEFINE_string(
        "model", "", "a vision-language model: its directory, or 'shipped'; it answers digit-scene questions",
        flag_values=values,
    )  # fmt: skip
    text = "held-out images or questions (default: 1000, or 128 images for a tokenizer)"
    absl_flags.DEFINE_integer("images", None, text, flag_values=values, lower_bound=1)
    absl_flags.DEFINE_string("split", "test", "split to evaluate on", flag_values=values)
    tokenizer_evaluation_flags(values)
    absl_flags.DEFINE_string(
        "reducer", "", "safetensors file of a trained reducer (from jtok train)", flag_values=values
    )
    absl_flags.DEFINE_bool("json", False, "print JSON", flag_values=values)


def _run(args, config) -> int:
    if args.tokenizer:
        from jtok.commands.evaluate_tokenizer import evaluate

        return evaluate(args)
    args.images = args.images or 1000
    from jtok.evaluation.sweeps.sweep import Cell, held_out, run_cell
    from jtok.methods import catalogue
    from jtok.sharding import on_mesh_of, place
    from jtok.training.weights import load_reducer

    (method, options), mesh = method_of(args), parse_mesh(args)
    if args.model or (config is not None and config.get("task") == "answer_questions"):
        return _answer(args, args.model or config.sweep.model, Cell(method, args.keep, options), mesh)
    task, params = make_task(config)
    params = params if mesh is None else place(params, mesh)
    plan = catalogue.make_plan(method, task.model.target(), args.keep, **options)  # before any image is read
    trained = {"model": params["model"], "plan": load_reducer(args.reducer, plan)} if args.reducer else None
    if not trained:
        tell_if_untrained(plan)
    cell = Cell(method, args.keep, options, trained)
    images = held_out(task, args.split, args.images)
    with on_mesh_of(params):
        record = run_cell(task, params, cell, images)
    if args.json:
        print(json.dumps(record, indent=2))
        return 0
    print(f"{described(plan)}: accuracy {record['accuracy']:.2%} ({record['correct']} of {record['total']})")
    print(f"tokens per block {record['tokens_per_block']}, at the end {_left(record)}; {record['gmacs']:.4f} GMACs")
    for batch in (1, 8):
        time = record[f"latency_ms_b{batch}"]
        print(f"batch {batch}: {time['median']:.2f} ms (p10 {time['p10']:.2f}, p90 {time['p90']:.2f})")
    return 0


def _left(record) -> str:
    """The number of tokens left: measured where it depends on the image."""
    cap = record["cap"]
    return f"{record['tokens']:.1f} (mean, at most {cap})" if record["adaptive"] else str(cap)


def _answer(args, name: str, cell, mesh) -> int:
    """Held-out questions: accuracy overall and per kind."""
    from rich.console import Console

    from jtok.commands.options import load_model
    from jtok.evaluation.sweeps.pareto import table
    from jtok.evaluation.vqa.questions import held_out_questions, run_cell
    from jtok.methods import catalogue
    from jtok.sharding import on_mesh_of
    from jtok.training.weights import load_reducer

    model = load_model(name, mesh)
    plan = catalogue.make_plan(cell.method, model.config.target(), cell.keep, **cell.options)
    trained = {"model": model.params, "plan": load_reducer(args.reducer, plan)} if args.reducer else None
    if not trained:
        tell_if_untrained(plan)
    side = model.config.tower.image
    questions = held_out_questions(model, args.images, split=args.split, size=side)
    with on_mesh_of(model.params):
        record = run_cell(model, dataclasses.replace(cell, params=trained), questions)
    if args.json:
        print(json.dumps(record | {"chance": questions.chance}, indent=2))
        return 0
    print(f"{described(plan)}: accuracy {record['accuracy']:.2%} ({record['correct']} of {record['total']})")
    layers = f"visual tokens per layer {record['tokens_per_block']}, at the end {_left(record)}"
    print(f"{layers}; {record['gmacs']:.4f} GMACs to read a prompt")
    rows = [
        {"kind of question": kind, "accuracy": f"{a:.1%}", "chance": f"{questions.chance[kind]['majority']:.1%}"}
        for kind, a in {**record["kinds"], "all": record["accuracy"]}.items()
    ]
    Console().print(table(rows, title="chance: always giving the most common answer of each kind"))
    return 0


COMMAND = Command(
    "evaluate",
    "Measure accuracy and cost of one method, or what a tokenizer keeps.",
    _flags,
    _run,
    config="optional",
)
