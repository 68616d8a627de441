"""The model card of an export: what it is, what it costs, its provenance; as JSON and as Markdown."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jtok.evaluation.cost.flops import count
from jtok.evaluation.cost.memory import parameters
from jtok.export.source import Source
from jtok.models.towers.vit import ViT
from jtok.plan import Plan
from jtok.training.record import git_commit, versions


def describe(facts: dict[str, Any], form: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Everything a card says. facts: of the model; form: of the format; directory: where the files are."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in sorted(directory.iterdir())
    }
    return {**facts, "format": form, "files": files, "versions": versions(), "commit": git_commit()}


def tower_facts(source: Source) -> dict[str, Any]:
    """What the card of a tower says: `about` (what people read first), model, parameters, plan, cost, data, weights."""
    c, target = source.config, source.config.target()
    return {
        "about": {
            "tower": f"{c.depth} blocks, width {c.width}, {c.heads} heads, patch {c.patch}, {c.image} pixels, "
            f"{c.classes} classes"
        },
        "model": dataclasses.asdict(c),
        "parameters": parameters(source.params).count,
        "plan": plan_facts(source.plan, source.method, target.patches),
        "cost_of_an_image": _cost(source),
        "data": source.data,
        "weights": source.weights,
    }


def plan_facts(plan: Plan, how: Mapping[str, Any], patches: int) -> dict[str, Any]:
    """how: method, keep and options it was made with. trained: nothing that it learned is random."""
    counts = [{"site": s, "in": before, "out": after} for s, before, after in plan.counts(patches)]
    learned = {"parameters": parameters(plan.params()).count, "trained": not plan.untrained}
    return {
        **how, "asked": plan.asked, "adaptive": plan.adaptive, **learned, "patches": patches, "counts": counts
    }  # fmt: skip


def _cost(source: Source) -> dict[str, Any]:
    c = source.config
    if c.packed:
        return {}
    tower = nnx.eval_shape(lambda: ViT(c, nnx.Rngs(0)))
    image = jax.ShapeDtypeStruct((1, c.image, c.image, c.channels), jnp.float32)

    def read(tower: ViT, image: jax.Array, plan: Plan) -> Any:
        output = tower(image, plan)
        return output.tokens.x if output.pooled is None else (output.pooled, output.logits)

    with_plan, without = (count(lambda t, x, p=p: read(t, x, p), tower, image) for p in (source.plan, Plan()))
    return {
        "gflops": with_plan.gflops, "gmacs": with_plan.gmacs,
        "gflops_without_plan": without.gflops, "gmacs_without_plan": without.gmacs,
        "note": "a multiply-add is two FLOPs and one MAC; conventions: jtok.evaluation.cost.flops.CONVENTIONS",
    }  # fmt: skip


def write(facts: dict[str, Any], form: dict[str, Any], directory: Path) -> None:
    """Writes model_card.json and MODEL_CARD.md beside the files of an export."""
    card = describe(facts, form, directory)
    (directory / "model_card.json").write_text(json.dumps(card, indent=2, default=str) + "\n", encoding="utf-8")
    (directory / "MODEL_CARD.md").write_text(markdown(card), encoding="utf-8")


def markdown(card: dict[str, Any]) -> str:
    """The card for people."""
    plan, cost = card.get("plan"), card["cost_of_an_image"]
    rows = [*card["about"].items(), ("parameters", f"{card['parameters']:,}")]
    if plan:
        own = f"{plan['parameters']:,} parameters of its own"
        words = [plan["method"], plan["asked"], own, "" if plan["trained"] else "UNTRAINED: they are random"]
        rows.append(("plan", ", ".join(filter(None, words))))
    if cost:
        rows.append(("cost of an image", "; ".join(f"{k} {_figure(v)}" for k, v in cost.items() if k != "note")))
    rows += [
        ("data", f"{(card['data'] or {}).get('name', 'not recorded in the weights')}"),
        ("weights", ", ".join(f"{k} {v}" for k, v in card["weights"].items())),
        ("versions", ", ".join(f"{k} {v}" for k, v in card["versions"].items())),
        ("commit", str((card["commit"] or {}).get("commit", "an installed package"))),
    ]
    lines = ["# Model card", "", "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows), ""]
    if plan:
        most = ", at most (it depends on the image)" if plan["adaptive"] else ""
        lines += ["## Tokens", "", f"| site | patch tokens in{most} | out{most} |", "|---|---|---|"]
        lines += [f"| {row['site']} | {row['in']} | {row['out']} |" for row in plan["counts"]]
        lines += [] if plan["counts"] else [f"| (none) | {plan['patches']} | {plan['patches']} |"]
        lines += [""]
    lines += ["## Format", "", *(f"* {name}: {text}" for name, text in card["format"].items())]
    lines += ["", "## Files", "", "| file | bytes | sha256 |", "|---|---|---|"]
    lines += [f"| {name} | {f['bytes']:,} | {f['sha256']} |" for name, f in card["files"].items()]
    return "\n".join(lines) + "\n"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
