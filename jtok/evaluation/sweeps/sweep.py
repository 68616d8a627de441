"""Accuracy against cost of many methods at many keep ratios, on one model and the same held-out images.

Every cell is compiled once at the throughput batch; the accuracy pass gives the latency samples as well. What is
counted: MACs of the whole forward pass from its jaxpr (`jtok.evaluation.cost.flops`), patches after every block
(without special ones), their average over blocks, and those left at the end.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok.evaluation.cost.flops import count_jaxpr
from jtok.evaluation.cost.latency import measure
from jtok.methods import catalogue
from jtok.models.towers.vit import ViTConfig
from jtok.plan import Plan
from jtok.sites import Site
from jtok.training.tasks.classify import Classify, example_keys

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of a sweep: a method (or several joined by +) and what is asked of it.

    params: {"model", "plan"} of a run that trained it.
    """

    method: str
    keep: float | None = None  # None: nothing was asked, or one of the options says how much
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    params: Mapping[str, Any] | None = None


def held_out(task: Classify, split: str, images: int) -> dict[str, np.ndarray]:
    """The first `images` examples of a split as arrays {"image": uint8 [n,H,W,3], "label": int32 [n]}."""
    data = task.dataset(split)
    examples = [data[i] for i in range(min(images, len(data)))]
    return {name: np.stack([e[name] for e in examples]) for name in ("image", "label")}


def tokens_per_block(plan: Plan, config: ViTConfig) -> list[int]:
    """Patch tokens that leave each block's MLP, known before anything is traced."""
    patches, counts = config.target().patches, []
    if plan.inputs is not None:
        patches = plan.inputs.count(patches)
    for i in range(config.depth):
        for where in ("input", "after_attention"):
            reducer = plan.at(Site("tower", i, where))
            patches = patches if reducer is None else reducer.count(patches)
        counts.append(patches)
        reducer = plan.at(Site("tower", i))
        patches = patches if reducer is None else reducer.count(patches)
    return counts


def run_cell(
    task: Classify,
    params: Mapping[str, Any],
    cell: Cell,
    images: Mapping[str, np.ndarray],
    *,
    batch: int = 8,
    single: bool = True,
) -> Record:
    """Measures one cell: accuracy, cost, latency at `batch` (from the accuracy pass) and, with `single`, at batch 1."""
    plan = catalogue.make_plan(cell.method, task.model.target(), cell.keep, **cell.options)
    if cell.params is not None:
        plan, params = plan.with_params(cell.params["plan"], trained=True), cell.params

    @jax.jit
    def predict(params, batch):
        out = task.apply(params, batch["image"], plan, key=example_keys(batch))
        return out.logits.argmax(-1), out.tokens.mask()[:, out.tokens.special :].sum(1)

    params = {"model": params["model"]}
    first = {name: jnp.asarray(a[np.arange(batch) % len(a)]) for name, a in images.items()}
    traced = predict.trace(params, first)  # traced once, counted and compiled
    compiled = traced.lower().compile()
    correct, left, times = _accuracy(lambda b: compiled(params, b), images, batch)
    blocks = tokens_per_block(plan, task.model)
    record = {
        "method": cell.method,
        **facts_of(cell.method),
        **asked_of(cell, plan),
        "trained": cell.params is not None,
        "accuracy": float(correct.mean()),
        "correct": int(correct.sum()),
        "total": len(correct),
        "gmacs": count_jaxpr(traced.jaxpr).gmacs / batch,
        "tokens_per_block": blocks,
        "tokens_average": float(np.mean(blocks)),
        "tokens_end": float(left.mean()) if plan.adaptive else _cap(plan, task.model),
        "tokens": float(left.mean()),
        "cap": _cap(plan, task.model),
        f"latency_ms_b{batch}": percentiles(times),
        f"throughput_b{batch}": batch / float(np.median(times)),
    }
    if single:
        one = {name: jnp.asarray(a[:1]) for name, a in images.items()}
        latency = measure(predict, params, one, repeats=20, min_seconds=0.1)
        record["latency_ms_b1"] = {name: 1e3 * getattr(latency, name) for name in ("median", "p10", "p90")}
    return record


def asked_of(cell: Cell, plan: Plan) -> Record:
    """What was asked of a method, for its record; adaptive: how many tokens are left depends on the image."""
    return {"keep": cell.keep, "asked": plan.asked, "options": dict(cell.options), "adaptive": plan.adaptive}


def facts_of(method: str) -> dict[str, str]:
    """What the catalogue says of a method, for its records; of several joined by `+`, what it says of each."""
    facts = {"title": "Unreduced model", "paper": "", "family": "none", "training": "none", "idea": ""}
    if method == "none":
        return facts
    entries = [catalogue.find(part) for part in method.split("+")]
    said = {name: " + ".join(dict.fromkeys(getattr(entry, name) for entry in entries)) for name in facts}
    return said | {"training": max((e.training for e in entries), key=("none", "optional", "required").index)}


def sweep(
    measure_cell: Callable[[Cell, bool], Record],
    cells: Sequence[Cell],
    *,
    single: Callable[[Cell], bool] = lambda cell: True,
    progress: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Measures the unreduced model and then every cell; `progress` is called with each record as it is done.

    measure_cell: `(cell, single) -> record`, where `single` says whether batch 1 is timed too.
    """
    records = []
    for cell in [Cell("none"), *cells]:
        record = measure_cell(cell, single(cell))
        record["gmacs_unreduced"] = records[0]["gmacs"] if records else record["gmacs"]
        records.append(record)
        progress(record)
    return records


def _cap(plan: Plan, config: ViTConfig) -> int:
    counts = plan.counts(config.target().patches)
    return counts[-1][2] if counts else config.target().patches


def _accuracy(predict, images: Mapping[str, np.ndarray], batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(correct [n] bool, patch tokens left [n], seconds per call). The last part is filled up with its first image."""
    n = len(images["label"])
    correct, left, times = [], [], []
    for start in range(0, n, batch):
        rows = np.arange(start, start + batch)
        rows = np.where(rows < n, rows, start)
        part = jax.block_until_ready({name: jnp.asarray(a[rows]) for name, a in images.items()})
        (said, count), seconds = timed(lambda part=part: predict(part), warm_up=not times)
        times.append(seconds)
        real = slice(min(batch, n - start))
        correct.append((np.asarray(said) == images["label"][rows])[real])
        left.append(np.asarray(count)[real])
    return np.concatenate(correct), np.concatenate(left), np.array(times)


def timed(call: Callable[[], Any], *, warm_up: bool) -> tuple[Any, float]:
    """(what a call gives, the seconds it takes), after one that does not count if `warm_up`."""
    if warm_up:
        jax.block_until_ready(call())
    begin = time.perf_counter()
    found = jax.block_until_ready(call())
    return found, time.perf_counter() - begin


def percentiles(seconds: np.ndarray) -> dict[str, float]:
    """Median, 10th and 90th percentile, in milliseconds."""
    median, low, high = np.percentile(seconds, [50, 10, 90]) * 1e3
    return {"median": float(median), "p10": float(low), "p90": float(high)}
