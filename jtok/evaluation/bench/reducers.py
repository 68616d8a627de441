"""Benchmarks of reducers by themselves and of whole towers with a plan against the same tower without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jtok.evaluation.cost.flops import count
from jtok.evaluation.cost.latency import compare, measure
from jtok.methods import catalogue
from jtok.models.towers.presets import make_config
from jtok.models.towers.vit import ViT
from jtok.plan import Plan
from jtok.reducer import Reducer
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens, from_features

HEAD = 64  # features a head, as in ViT-S and ViT-L


def inputs(reducer: Reducer, target: Target, batch: int, seed: int = 0) -> tuple[Tokens, Signals]:
    """Random tokens and exactly the signals that the reducer reads."""
    n, heads = target.patches + target.special, target.heads
    keys = jax.random.split(jax.random.key(seed), 6)
    attention = jax.nn.softmax(jax.random.normal(keys[0], (batch, heads, n)))
    made = {
        "class_attention": attention,
        "attention_received": jax.random.uniform(keys[1], (batch, n)),
        **{
            name: jax.random.normal(key, (batch, n, heads, target.width // heads))
            for name, key in zip(("queries", "keys", "values"), keys[2:5], strict=True)
        },
    }
    x = jax.random.normal(keys[5], (batch, n, target.width))
    s = Signals(**{name: made[name] for name in reducer.reads}, key=jax.random.split(keys[0], batch))
    return from_features(x, target.grid, target.special), s


def bench_reducers(
    methods: Sequence[str], sides: Sequence[int], widths: Sequence[int], batches: Sequence[int], keep: float | None
) -> list[dict[str, Any]]:
    """Milliseconds of each method's first reducer: N = side^2 + 1 tokens of `width` features, median and p10-p90.

    A method that has no reducer (it resizes the image) has no row. Learned reducers get freshly initialized parameters.
    """
    rows = []
    for method in methods:
        for side in sides:
            for width in widths:
                target = Target(12, (side, side), width, width // HEAD, 1, 1000)
                plan = catalogue.make_plan(method, target, keep if catalogue.takes_share(method) else None)
                sites = plan.sites
                if not sites:
                    continue
                site, reducer = next(iter(sites.items()))
                for batch in batches:
                    tokens, s = inputs(reducer, target, batch)
                    run = jax.jit(lambda t, s, r=reducer: _kept(r(t, s, {})[0]))
                    time = measure(run, tokens, s, repeats=10, min_seconds=0.2)
                    row = {"method": method, "site": str(site), "tokens": tokens.count, "width": width, "batch": batch}
                    row |= {"patches_out": reducer.count(target.patches), "adaptive": plan.adaptive}
                    row |= {"asked": plan.asked}
                    rows.append(row | {f"{q}_ms": 1e3 * getattr(time, q) for q in ("median", "p10", "p90")})
    return rows


def _kept(tokens: Tokens):
    """The tensors a model continues with; the owner map is only computed for figures."""
    return tokens.x, tokens.size


def _of(plan: Plan, target: Target) -> dict[str, Any]:
    """What was asked of a plan, and the patches that it leaves: a cap where the number depends on the image."""
    counts = plan.counts(target.patches)
    remaining = counts[-1][2] if counts else target.patches
    return {"asked": plan.asked, "adaptive": plan.adaptive, "trained": not plan.untrained, "cap": remaining}


def bench_model(
    preset: str, method: str, keep: float | None, options: dict[str, Any], batch: int, image: int | None = None
) -> dict[str, Any]:
    """Speed-up of a tower by a plan, in alternating runs, and its share of the ideal that follows from MACs."""
    config = make_config(preset)
    plans = {"unreduced": catalogue.make_plan("none", config.target(image))}
    plans[method] = catalogue.make_plan(method, config.target(image), keep, **options)
    side = image or config.image
    graphdef, state = nnx.split(ViT(config, nnx.Rngs(0)))
    images = jax.random.normal(jax.random.key(0), (batch, side, side, config.channels), jnp.float32)

    def run(plan):
        def apply(state, x):
            out = nnx.merge(graphdef, state)(x, plan)
            return out.tokens.x if out.logits is None else out.logits

        return apply

    macs = {name: count(run(plan), state, images).gmacs / batch for name, plan in plans.items()}
    timed = compare({name: (jax.jit(run(plan)), (state, images)) for name, plan in plans.items()}, baseline="unreduced")
    ratio = timed.ratios[method]
    ideal = macs["unreduced"] / macs[method]
    return {
        "model": preset, "image": side, "batch": batch, "method": method, "keep": keep, "options": options,
        **_of(plans[method], config.target(image)),
        "platform": jax.default_backend(), "devices": jax.local_device_count(), "gmacs": macs,
        "ms": {name: {q: 1e3 * getattr(t, q) for q in ("median", "p10", "p90")} for name, t in timed.latencies.items()},
        "speedup": 1 / ratio.ratio, "speedup_low": 1 / ratio.high, "speedup_high": 1 / ratio.low,
        "ideal_speedup": ideal, "share_of_ideal": 1 / ratio.ratio / ideal,
    }  # fmt: skip
