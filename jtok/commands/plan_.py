"""`jtok plan`: where a method stands in a model, how many tokens it leaves and what the rest costs."""

from __future__ import annotations

import json
import re
from typing import Any

from absl import flags as absl_flags

from jtok.commands.options import method_flags, parse_options
from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    method_flags(values)
    absl_flags.DEFINE_string("model", "deit_s16", "preset of a vision tower", flag_values=values)
    absl_flags.DEFINE_integer("image", None, "image side in pixels (default: the preset's)", flag_values=values)
    absl_flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=values)


def table(model: str, method: str, keep: float, options: dict[str, Any], image: int | None = None) -> dict[str, Any]:
    """Sites with patch tokens in and out, and GFLOPs (2 x MACs and the rest) of each stretch of the model."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from jtok.evaluation.cost.flops import count
    from jtok.methods import catalogue
    from jtok.models.towers.presets import make_config
    from jtok.models.towers.vit import ViT

    config = make_config(model)
    target = config.target(image)
    plan = catalogue.make_plan(method, target, keep, **options)
    side = image or config.image
    tower = nnx.eval_shape(lambda: ViT(config, nnx.Rngs(0)))
    shape = jax.ShapeDtypeStruct((1, side, side, config.channels), jnp.float32)

    def cost(plan):
        return count(lambda m, x: m(x, plan).tokens.x if not config.classes else m(x, plan).logits, tower, shape)

    reduced, full = cost(plan), cost(type(plan)())
    spans: dict[str, float] = {}
    for scope, c in reduced.by_scope.items():
        name = scope.split("/")[0]
        if name:
            spans[name] = spans.get(name, 0.0) + c.flops / 1e9
    counts = {site: (before, after) for site, before, after in plan.counts(target.patches)}
    reducers = {str(site): type(reducer).__name__ for site, reducer in plan.sites.items()}
    rows, patches = [], target.patches
    if "input" in counts:
        patches = counts["input"][1]
        rows.append({"where": "input", "in": target.patches, "out": patches, "gflops": 0.0})
    for name in sorted(spans, key=_place):
        before, after = counts.get(name, (patches, patches))
        who = reducers.get(name, "")
        rows.append({"where": name, "reducer": who, "in": before, "out": after, "gflops": spans[name]})
        patches = after
    return {
        "model": model, "image": side, "method": method, "keep": keep, "special_tokens": target.special, "rows": rows,
        "gflops": reduced.gflops, "gmacs": reduced.gmacs, "gflops_unreduced": full.gflops,
        "gmacs_unreduced": full.gmacs, "conventions": reduced.conventions,
    }  # fmt: skip


def _place(scope: str) -> tuple:
    """Order of scopes along the model."""
    block = re.match(r"tower\.blocks?\.(\d+)(?:-\d+)?(?:\.(\w+))?$", scope)
    if block:
        # the MLP half of a block shares its scope with the attention half, before the site inside
        rank = {"input": 0, None: 1, "after_attention": 2, "output": 3}
        return 1, int(block[1]), rank[block[2]]
    return {"tower.embed": (0,), "tower.output": (2,)}.get(scope, (3, scope))


def _run(args, config) -> int:
    result = table(args.model, args.method, args.keep, parse_options(args.option), args.image)
    if args.json:
        print(json.dumps(result, indent=2, default=str))
        return 0
    from rich.console import Console
    from rich.table import Table

    title = f"{args.method}, keep {args.keep:g}, in {args.model} at {result['image']} pixels"
    view = Table(title=title, caption="patch tokens; special tokens ride along. GFLOPs: a multiply-add is two.")
    for column in ("site or stretch", "reducer"):
        view.add_column(column)
    for column in ("tokens in", "tokens out", "GFLOPs"):
        view.add_column(column, justify="right")
    for row in result["rows"]:
        view.add_row(row["where"], row.get("reducer", ""), str(row["in"]), str(row["out"]), f"{row['gflops']:.3f}")
    view.add_section()
    share = result["gflops"] / result["gflops_unreduced"]
    view.add_row("all", "", "", "", f"{result['gflops']:.3f}")
    view.add_row(f"unreduced ({share:.0%} of it is left)", "", "", "", f"{result['gflops_unreduced']:.3f}")
    Console().print(view)
    return 0


COMMAND = Command("plan", "Show where a method stands, tokens in and out, and GFLOPs.", _flags, _run)
