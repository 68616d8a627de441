"""`jtok calibrate`: fits the numbers of a method's plan on samples, once per model, and writes them to a file."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from absl import flags as absl_flags

from jtok.commands.options import load_model, parse_options
from jtok.errors import UserError
from jtok.flags import Command

#: Side of a scene in pixels, as the shipped model expects it; other processors resize it.
SIDE = 72


def _flags(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("method", None, "method with a calibration", flag_values=values, required=True)
    text = "vision-language model: its directory, or 'shipped' (default: the config's model, else 'shipped')"
    absl_flags.DEFINE_string("model", "", text, flag_values=values)
    text = "digit-scene questions to calibrate on"
    absl_flags.DEFINE_integer("samples", 20, text, flag_values=values, lower_bound=1)
    absl_flags.DEFINE_string("split", "train", "split the questions are taken from", flag_values=values)
    text = "an option of the calibration as name=value; repeatable"
    absl_flags.DEFINE_multi_string("option", [], text, flag_values=values)
    absl_flags.DEFINE_string("out", None, "JSON file to write, for --plan", flag_values=values, required=True)


def calibration(method: str, options: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A method's calibration. Raises UserError for a method without one, and for options that it does not take."""
    from jtok.methods import catalogue

    calibrate = catalogue.find(method).calibrate
    if calibrate is None:
        able = ", ".join(name for name, entry in catalogue.methods().items() if entry.calibrate)
        raise UserError(f"{method} has nothing to calibrate; methods that do: {able}.")
    known = list(inspect.signature(calibrate).parameters)[2:]
    for name in options.keys() - set(known):
        raise UserError(f"the calibration of {method} has no option '{name}'; it takes {', '.join(known)}.")
    return calibrate


def questions(model: Any, samples: int, split: str) -> list[Any]:
    """Inputs of digit-scene questions, one prompt each, as `model.read` takes them."""
    from jtok.data.question_text import decode_question
    from jtok.data.questions import digit_questions

    data = digit_questions(split, size=SIDE, length=samples)
    examples = (data[i] for i in range(samples))
    return [model.inputs(decode_question(e["question"]), e["image"]) for e in examples]


def calibrated(model: Any, method: str, options: dict[str, Any], samples: int, split: str) -> dict[str, Any]:
    """The content of a `jtok calibrate` file, except for the name of the model."""
    from jtok.version import __version__

    calibrate = calibration(method, options)
    calibrated_options = calibrate(model, questions(model, samples, split), **options)
    data = {"questions": "digit scenes", "split": split, "samples": samples}
    return {"method": method, "options": calibrated_options, "calibration": options, "data": data, "jtok": __version__}


def _run(args, config) -> int:
    from jtok.viz.files import write_whole

    options = parse_options(args.option)
    calibration(args.method, options)  # before any model is loaded
    name = args.model or (config.sweep.model if config is not None and "sweep" in config else "shipped")
    content = calibrated(load_model(name), args.method, options, args.samples, args.split) | {"model": name}
    path = write_whole(args.out, (json.dumps(content, indent=2) + "\n").encode())
    summary = ", ".join(f"{option} {value}" for option, value in content["options"].items())
    print(f"{args.method}: {summary}")
    print(f"wrote {path}")
    return 0


COMMAND = Command("calibrate", "Fit the numbers of a method's plan on samples.", _flags, _run, config="optional")
