"""`jtok sweep`: accuracy against cost of many methods, or quality against bits of a tokenizer; tables and a report."""

from __future__ import annotations

import functools
import sys

from absl import flags as absl_flags

from jtok.commands.options import tell_if_untrained
from jtok.errors import UserError
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("workdir", None, "directory for the results", flag_values=values, required=True)


def _run(args, config) -> int:
    from rich.console import Console

    if "sweep" not in config:
        raise UserError("the config has no `sweep` section: start from configs/vit/sweep.py.")
    study = _study(config, args.workdir, "jtok " + " ".join(sys.argv[1:]))
    if config.sweep.get("pictures_first", False):
        for path in study.draw():
            print(f"wrote {path}", flush=True)
    study.run(say=functools.partial(Console(stderr=True).print, soft_wrap=True))
    for table in study.tables():
        Console().print(table)
    print(f"wrote {study.report()}")
    return 0


def _study(config, workdir: str, command: str):
    """The study that runs and reports the sweep that `config.task` asks for."""
    if config.get("task") != "rate_distortion":
        from jtok.evaluation.sweeps.study import Study

        study = Study(_subject(config), config, workdir, command=command)
        for plan in study.untrained():
            tell_if_untrained(plan, "config.sweep.runs")
        return study
    from jtok import compile_cache
    from jtok.evaluation.sweeps.rate_distortion import RateDistortion
    from jtok.tokenizers.codec import Codec
    from jtok.tokenizers.shipped import open_tokenizer

    compile_cache.enable()
    codec = Codec(open_tokenizer(config.sweep.tokenizer), overlap=config.sweep.overlap)
    return RateDistortion(codec, config, workdir, command)


def _subject(config):
    """What `config.task` is swept on: the classifier of the config, or the vision-language model of `sweep.model`."""
    from jtok.commands.options import load_model, make_task
    from jtok.evaluation.sweeps.study import SceneReader
    from jtok.evaluation.vqa.question_study import QuestionReader

    if config.get("task") == "answer_questions":
        return QuestionReader(load_model(config.sweep.model), config)
    return SceneReader(*make_task(config), config)


COMMAND = Command(
    "sweep", "Sweep methods and keep ratios, or a tokenizer's lengths; write a report.", _flags, _run, config="required"
)
