"""Flags that several commands share, and what they mean."""

from __future__ import annotations

import ast
import dataclasses
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags
from ml_collections import ConfigDict

from jtok.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jtok.plan import Plan


def method_flags(values: absl_flags.FlagValues, method: str = "none") -> None:
    """--method, --keep and --option name=value (repeatable)."""
    text = "name of a method (`jtok list` shows them), or several joined by +, such as visionzip+fastv"
    absl_flags.DEFINE_string("method", method, text, flag_values=values)
    text = "share of the patches left after the last site (default: the method's own)"
    absl_flags.DEFINE_float("keep", None, text, flag_values=values)
    absl_flags.DEFINE_multi_string(
        "option",
        [],
        "a method's option as name=value (of one of several: fastv.layer=3); repeatable",
        flag_values=values,
    )


def mesh_flags(values: absl_flags.FlagValues) -> None:
    """--fsdp and --tensor: the number of devices a model's parameters are sharded over."""
    text = "devices that share every parameter and gather it when it is used"
    absl_flags.DEFINE_integer("fsdp", 1, text, flag_values=values)
    absl_flags.DEFINE_integer("tensor", 1, "devices that split heads, hidden units and vocabulary", flag_values=values)


def parse_mesh(args: Any) -> Mesh | None:
    """The mesh of `mesh_flags`; None, which leaves the model on the first device, where both are 1."""
    from jtok.sharding import make_mesh

    return None if args.fsdp == args.tensor == 1 else make_mesh(args.fsdp, args.tensor)


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


def described(plan: Plan) -> str:
    """A plan as text: its method and requested budget."""
    if plan.name == "none":
        return "unreduced"
    return f"{plan.name}, {plan.asked}" if plan.asked else plan.name


def tokens_left(count: int, plan: Plan) -> str:
    """A number of tokens that a plan leaves, as far as it is known before running."""
    return f"at most {count}" if plan.adaptive else str(count)


def tell_if_untrained(plan: Plan, how: str = "--reducer=FILE") -> None:
    """One sentence on stderr where a plan has learned parameters that are random; `how`: the flag that loads them."""
    from jtok.methods.reduce import untrained_text

    if plan.untrained:
        print(f"jtok: {untrained_text(plan, how)}", file=sys.stderr)


def reduced(model: Any, method: str, *, how: str, **asked: Any) -> Any:
    """A vision-language model with a method placed in it; if it is untrained, stderr says so."""
    from jtok.methods.reduce import UntrainedWarning, reduce

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedWarning)  # reported below, in the form commands use
        model = reduce(model, method, **asked)
    tell_if_untrained(model.plan, how)
    return model


def shipped_config() -> ConfigDict:
    """Config of the small tower that comes with jtok, reading digit scenes."""
    from jtok.checkpoints.shipped import SHIPPED
    from jtok.training.tasks.classify import default_config

    config = default_config()
    config.model.preset = "scenes"
    config.weights = SHIPPED
    return config


def make_task(config: ConfigDict | None):
    """(task, parameters) of a config, or of the shipped model without one; weights as `config.weights` says."""
    import jax

    from jtok import compile_cache
    from jtok.training.tasks.classify import Classify

    compile_cache.enable()
    task = Classify(shipped_config() if config is None else config)
    return task, task.init(jax.random.key(0))


def load_model(name: str, mesh: Mesh | None = None):
    """A vision-language model: the one that comes with jtok ("shipped"), or that of a directory; on a mesh if given."""
    from jtok import compile_cache
    from jtok.models.vlm.model import load
    from jtok.models.vlm.shipped import shipped
    from jtok.sharding import place

    compile_cache.enable()
    if name != "shipped":
        return load(name, mesh=mesh)
    model = shipped()
    return model if mesh is None else dataclasses.replace(model, params=place(model.params, mesh))
