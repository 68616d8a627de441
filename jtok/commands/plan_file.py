"""Files of `jtok calibrate`: a method and its calibrated options, for `--plan=FILE` of other commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from absl import flags as absl_flags

from jtok.commands.options import parse_options
from jtok.errors import UserError


def plan_flag(values: absl_flags.FlagValues) -> None:
    """--plan, a file of `jtok calibrate`."""
    text = "file of `jtok calibrate`: its method and options (--option takes precedence; omit --keep)"
    absl_flags.DEFINE_string("plan", "", text, flag_values=values)


def method_of(args: Any) -> tuple[str, dict[str, Any]]:
    """(method, options) of flags with `--method`, `--option` and `--plan`; what `--option` says wins over the file.

    A file goes with its method, or with several joined by `+` of which its method is one. Raises UserError for a file
    that is not there or none of `jtok calibrate`, and for one of another method.
    """
    options = parse_options(args.option)
    if not args.plan:
        return args.method, options
    name, calibrated = read_plan(args.plan)
    if args.method == "none":
        return name, {**calibrated, **options}
    names = args.method.split("+")
    if name not in names:
        raise UserError(f"{args.plan} was calibrated for {name}, not for {args.method}: omit --method.")
    if len(names) > 1:
        calibrated = {f"{name}.{option}": value for option, value in calibrated.items()}
    return args.method, {**calibrated, **options}


def read_plan(path: str) -> tuple[str, dict[str, Any]]:
    """(method, options) of a file. Raises UserError if it cannot be read or is not a plan."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read the plan {path}: {error.strerror}; `jtok calibrate --out={path}` writes it."
        ) from error
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("options"), dict) or "method" not in content:
        raise UserError(
            f"{path} is not a plan: it should be JSON with a method and options, as `jtok calibrate` writes it."
        )
    return content["method"], content["options"]
