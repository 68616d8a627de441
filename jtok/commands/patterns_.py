"""`jtok patterns`: which patches a method drops, keeps or merges, image by image, for comparing methods."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from jtok.commands.options import make_task, parse_options
from jtok.errors import UserError
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    text = "name of a method (`jtok list` shows them), or several joined by +, such as visionzip+fastv"
    absl_flags.DEFINE_string("method", "none", text, flag_values=values)
    text = "shares of the patches left after the last site (default: the method's own)"
    absl_flags.DEFINE_list("keeps", [], text, flag_values=values)
    text = "a method's option as name=value (of one of several: fastv.layer=3); repeatable"
    absl_flags.DEFINE_multi_string("option", [], text, flag_values=values)
    text = "a vision-language model: its directory, or 'shipped'; it answers digit-scene questions"
    absl_flags.DEFINE_string("model", "", text, flag_values=values)
    text = "ask these instead, with --model: 'pope', 'gqa', 'textvqa' or 'vqav2', its file and its folder of images"
    absl_flags.DEFINE_list("questions", [], text, flag_values=values)
    types = ["float32", "bfloat16"]
    absl_flags.DEFINE_enum("dtype", "float32", types, "of --model's parameters and activations", flag_values=values)
    absl_flags.DEFINE_integer("images", 400, "held-out images (or questions)", flag_values=values, lower_bound=1)
    absl_flags.DEFINE_string("workdir", None, "directory for patterns.npz", flag_values=values, required=True)


def _run(args, config) -> int:
    from jtok.evaluation.patterns import record_patterns as record
    from jtok.evaluation.sweeps.sweep import facts_of
    from jtok.methods.reduce import UntrainedWarning
    from jtok.training.record import make_workdir

    keeps = [_number(text) for text in args.keeps] or [None]
    options = parse_options(args.option)
    facts_of(args.method)  # an unknown one is found before any model is loaded
    workdir = make_workdir(args.workdir)
    with warnings.catch_warnings():
        warnings.simplefilter("default", UntrainedWarning)
        warnings.showwarning = lambda message, *_: print(f"jtok: {message}", file=sys.stderr)
        patterns = _patterns(args, config, keeps, options)
    record.save_patterns(workdir / "patterns.npz", patterns)
    _tell(patterns)
    print(f"wrote {workdir / 'patterns.npz'}")
    return 0


def _patterns(args, config, keeps: list[float | None], options) -> list:
    """A pattern for every share, of a model that answers questions or of a classifier."""
    from jtok.evaluation.patterns.record_patterns import tower_pattern
    from jtok.evaluation.sweeps.sweep import held_out

    if args.model or (config is not None and config.get("task") == "answer_questions"):
        return _of_questions(args, args.model or config.sweep.model, keeps, options)
    task, params = make_task(config)
    images = held_out(task, task.config.data.eval_split, args.images)
    return [tower_pattern(task, params, args.method, keep, images, options) for keep in keeps]


def _tell(patterns: list) -> None:
    for p in patterns:
        right = "not asked" if p.accuracy is None else f"{p.accuracy:.2%}"
        what = f"{p.method}, {p.asked}" if p.asked else p.method
        left = f", {p.tokens:.1f} tokens per image" if p.sites else ""
        print(f"{what}: accuracy {right}, {len(p.feature)} images, {len(p.sites)} sites{left}")


def _of_questions(args, name: str, keeps: list[float | None], options) -> list:
    from jtok import compile_cache
    from jtok.evaluation.patterns.record_patterns import question_pattern
    from jtok.evaluation.vqa.questions import held_out_questions
    from jtok.models.vlm.model import load
    from jtok.models.vlm.shipped import shipped

    compile_cache.enable()
    model = shipped(dtype=args.dtype) if name == "shipped" else load(name, dtype=args.dtype)
    if args.questions:
        batches = _asked(model, args.questions, args.images)
        count = sum(len(b["key"]) for b in batches)
    else:
        held_out = held_out_questions(model, args.images, size=model.config.tower.image)
        batches, count = held_out.batches, len(held_out.kinds)
    return [question_pattern(model, args.method, keep, batches, count, options) for keep in keeps]


def _asked(model, words: list[str], count: int, batch: int = 8) -> list:
    """Prompts of a benchmark's questions in whole batches, without answers."""
    from jtok.data import vqa
    from jtok.evaluation.vqa.questions import prompt_keys

    if len(words) != 3 or words[0] not in ("pope", "gqa", "textvqa", "vqav2"):
        raise UserError("--questions takes three words: pope, gqa, textvqa or vqav2, its file, its folder of images.")
    data = getattr(vqa, words[0])(Path(words[1]), Path(words[2]))
    count = min(count, len(data))
    if count < batch:
        raise UserError(f"'{words[1]}' has {count} questions, and a batch takes {batch}: give more, or ask for more.")
    batches = []
    for start in range(0, count - batch + 1, batch):
        rows = np.arange(start, start + batch)
        prompts = [model.described().prompt(data[i]["question"], [data[i]["image"]]) for i in rows]
        inputs = model.config.arrange(model.described().batch(prompts), 32)
        batches.append({"inputs": inputs, "key": prompt_keys(rows)})
    return batches


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--keeps={text} is not a number: give shares such as 0.7,0.5.") from None


COMMAND = Command(
    "patterns", "Record which patches a method drops, keeps or merges, image by image.", _flags, _run, config="optional"
)
