"""Flags that several commands share, and what they mean."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags
from ml_collections import ConfigDict

from jtok.errors import UserError


def method_flags(values: absl_flags.FlagValues, method: str = "none", keep: float = 0.5) -> None:
    """--method, --keep and --option name=value (repeatable)."""
    absl_flags.DEFINE_string("method", method, "name of a method (`jtok list` shows them)", flag_values=values)
    absl_flags.DEFINE_float("keep", keep, "share of the patches left after the last site", flag_values=values)
    absl_flags.DEFINE_multi_string("option", [], "a method's option as name=value; repeatable", flag_values=values)


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """["r=13", "matching=kth"] -> {"r": 13, "matching": "kth"}. Raises UserError for a pair without '='."""
    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--option={pair} is not of the form name=value, such as --option=r=13.")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def shipped_config() -> ConfigDict:
    """Config of the small tower that comes with jtok, reading digit scenes."""
    from jtok.training.classify import default_config
    from jtok.training.weights import SHIPPED

    config = default_config()
    config.model.preset = "scenes"
    config.weights = SHIPPED
    return config


def make_task(config: ConfigDict | None):
    """(task, parameters) of a config, or of the shipped model without one; weights as `config.weights` says."""
    import jax

    from jtok import compile_cache
    from jtok.training.classify import Classify

    compile_cache.enable()
    task = Classify(shipped_config() if config is None else config)
    return task, task.init(jax.random.key(0))


def load_model(name: str):
    """A vision-language model: the one that comes with jtok ("shipped"), or that of a directory."""
    from jtok import compile_cache
    from jtok.models.answer import load
    from jtok.models.shipped import shipped

    compile_cache.enable()
    return shipped() if name == "shipped" else load(name)
