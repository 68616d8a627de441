"""`jtok plan`: where a method is placed in a model, how many tokens it leaves and what the model then costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from jtok.commands.options import described, method_flags, tell_if_untrained, tokens_left
from jtok.commands.plan_file import method_of, plan_flag
from jtok.commands.slots import slots_of
from jtok.errors import UserError
from jtok.flags import Command

if TYPE_CHECKING:
    from jtok.evaluation.cost.flops import FlopCount
    from jtok.plan import Plan
    from jtok.target import Target

#: Tokens of text around the image of the prompt whose cost is counted.
TEXT = 32


def _flags(values: absl_flags.FlagValues) -> None:
    method_flags(values)
    plan_flag(values)
    text = "preset of a vision tower or a vision-language model, directory of the latter, or 'shipped'"
    absl_flags.DEFINE_string("model", "deit_s16", text, flag_values=values)
    absl_flags.DEFINE_integer("image", None, "image side in pixels (default: the preset's)", flag_values=values)
    absl_flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=values)


def table(
    model: str, method: str, keep: float | None, options: dict[str, Any], image: int | None = None
) -> tuple[dict[str, Any], Plan]:
    """(sites with patch tokens in and out, and GFLOPs (2 x MACs and the rest) of each stretch of the model; the plan)

    Raises UserError for an unknown model and for a plan that does not fit.
    """
    from jtok.methods import catalogue

    target, side, fit, cost = _language(model, image) if _is_language(model) else _tower(model, image)
    plan = fit(catalogue.make_plan(method, target, keep, **options))
    reduced, full = cost(plan), cost(type(plan)())
    result = {
        "model": model, "image": side, "method": method, "keep": keep, "asked": plan.asked, "adaptive": plan.adaptive,
        "learned": bool(plan.params()), "trained": not plan.untrained, "slots": slots_of(plan),
        "special_tokens": target.special, "rows": _rows(plan, target.patches, reduced),
        "gflops": reduced.gflops, "gmacs": reduced.gmacs, "gflops_unreduced": full.gflops,
        "gmacs_unreduced": full.gmacs, "conventions": reduced.conventions,
    }  # fmt: skip
    return result, plan


def _rows(plan: Plan, patches: int, cost: FlopCount) -> list[dict[str, Any]]:
    """The model from stretch to stretch: where, what reduces there, tokens in and out, GFLOPs."""
    spans: dict[str, float] = {}
    for scope, c in cost.by_scope.items():
        name = scope.split("/")[0]
        # einsums name scopes of their own
        name = name if re.match(r"(tower|projector|llm|cross|head)\b", name) else "elsewhere" if name else ""
        if name:
            spans[name] = spans.get(name, 0.0) + c.flops / 1e9
    reducers = {str(site): type(reducer).__name__ for site, reducer in plan.sites.items()}
    for name, part in (("input", plan.inputs), ("cache", plan.cache)):
        reducers |= {name: type(part).__name__} if part is not None else {}
    counts = {name: (before, after) for name, before, after in plan.counts(patches)}
    rows = []
    for name in sorted({**spans, **counts, **{site: 0 for site in map(str, plan.sites)}}, key=_place):
        before, after = counts.get(name, (patches, patches))
        who = reducers.get(name, type(plan.layers).__name__ if name.startswith("layers.") else "")
        rows.append({"where": name, "reducer": who, "in": before, "out": after, "gflops": spans.get(name, 0.0)})
        patches = after
    return rows


def _place(scope: str) -> tuple:
    """Order of scopes along the model."""
    block = re.match(r"(?:(tower)\.blocks?|(llm)\.layers?|layers)\.(\d+)(?:-\d+)?(?:\.(\w+))?$", scope)
    if block:
        # the MLP half of a block shares its scope with the attention half, before the site inside
        rank = {"input": 0, None: 1, "after_attention": 2, "output": 3}
        leaves = scope.startswith("layers.")
        return 1 if block[1] else 4, int(block[3]), 0 if leaves else rank[block[4]]
    known = {"input": (-1,), "tower.embed": (0,), "tower.output": (2,), "projector": (3,), "llm.input": (4, -1)}
    return known.get(scope, (6 if scope == "cache" else 5, scope))


def _is_language(model: str) -> bool:
    from pathlib import Path

    from jtok.models.vlm.vlm_presets import presets

    return model == "shipped" or model in presets() or Path(model).is_dir()


Parts = tuple["Target", int, Callable[["Plan"], "Plan"], Callable[["Plan"], "FlopCount"]]


def _tower(model: str, image: int | None) -> Parts:
    """(target, side, plan -> plan for its sites, plan -> cost of an image) of a tower's preset."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jtok.evaluation.cost.flops import count
    from jtok.models.towers.presets import make_config
    from jtok.models.towers.vit import ViT

    config = make_config(model)
    side = image or config.image
    tower = nnx.eval_shape(lambda: ViT(config, nnx.Rngs(0)))
    shape = jax.ShapeDtypeStruct((1, side, side, config.channels), jnp.float32)

    def cost(plan: Plan) -> FlopCount:
        return count(lambda m, x: m(x, plan).tokens.x if not config.classes else m(x, plan).logits, tower, shape)

    return config.target(image), side, lambda plan: plan, cost


def _language(model: str, image: int | None) -> Parts:
    """The same of a vision-language model; the cost is that of reading a prompt with `TEXT` tokens of text."""
    import dataclasses

    import jax
    from flax import nnx

    from jtok.evaluation.bench.vlm import synthetic
    from jtok.evaluation.cost.flops import count
    from jtok.models.vlm.asking import describe
    from jtok.models.vlm.model import VLM
    from jtok.models.vlm.network import VLMConfig
    from jtok.models.vlm.shipped import shipped
    from jtok.models.vlm.vlm_presets import make_vlm_config, presets

    if model in presets():
        config = make_vlm_config(model)
    else:
        config = (shipped() if model == "shipped" else describe(model)).config
    if not isinstance(config, VLMConfig) or config.any_size:
        raise UserError(
            f"'{model}' has no prompt of fixed size to count: `jtok plan` takes models with LLaVA's architecture."
        )
    if image not in (None, config.tower.image):
        raise UserError(f"'{model}' reads images of {config.tower.image} pixels: omit --image.")
    inputs, keys = synthetic(config, 1, TEXT), jax.random.split(jax.random.key(0), 1)
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config.network(nnx.Rngs(0))), nnx.Param))

    def cost(plan: Plan) -> FlopCount:
        return count(lambda p: dataclasses.replace(whole, params=p, plan=plan).read(inputs, key=keys).logits, params)

    def fit(plan: Plan) -> Plan:
        config.check(plan)
        return plan

    whole = VLM(config, {})
    return config.target(), config.tower.image, fit, cost


def _run(args, config) -> int:
    method, options = method_of(args)
    result, plan = table(args.model, method, args.keep, options, args.image)
    tell_if_untrained(plan, "--reducer=FILE of other commands")
    if args.json:
        print(json.dumps(result, indent=2, default=str))
        return 0
    from rich.console import Console
    from rich.table import Table

    title = f"{described(plan)}, in {args.model} at {result['image']} pixels"
    view = Table(
        title=title, caption="patch tokens only; special tokens are always kept. GFLOPs: a multiply-add counts as two."
    )
    for column in ("site or stretch", "reducer"):
        view.add_column(column)
    for column in ("tokens in", "tokens out", "GFLOPs"):
        view.add_column(column, justify="right")
    for row in result["rows"]:
        numbers = (tokens_left(row[side], plan) for side in ("in", "out"))
        view.add_row(row["where"], row.get("reducer", ""), *numbers, f"{row['gflops']:.3f}")
    view.add_section()
    share = result["gflops"] / result["gflops_unreduced"]
    view.add_row("all", "", "", "", f"{result['gflops']:.3f}")
    view.add_row(f"unreduced ({share:.0%} of this remains)", "", "", "", f"{result['gflops_unreduced']:.3f}")
    console = Console()
    console.print(view)
    for line in _said(plan, result):
        console.print(line)
    return 0


def _said(plan: Plan, result: dict[str, Any]) -> list[str]:
    """Lines below the table: slots, whether counts are caps, whether learned parameters were trained."""
    lines = [f"{slot}: {part}" for slot, part in result["slots"].items()]
    if plan.adaptive:
        lines.append("adaptive: the number of tokens left depends on the image; counts and GFLOPs are upper bounds")
    if result["learned"]:
        lines.append("learned: " + ("trained" if result["trained"] else "untrained, with random parameters"))
    return lines


COMMAND = Command("plan", "Show where a method is placed, tokens in and out, and GFLOPs.", _flags, _run)
