"""Runs a stack of blocks with reducers placed at its sites.

Blocks between two sites run under one `lax.scan` over their stacked parameters; a block whose attention a reducer reads
(or inside which one is placed) runs on its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.layers.stacked import Stacked
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.signals import Signals, made_by_attention
from jtok.sites import Site
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a site did, for plots and analysis."""

    owner: Int[Array, "B N0"]  # token that holds each patch after the site, -1 = dropped
    position: Float[Array, "B N P"]
    score: Float[Array, "B N0"] | None  # the method's ranking of each patch on entering the site, where it has one


@dataclasses.dataclass
class Run:
    """The state of one forward pass: the tokens, and what reducers recorded."""

    plan: Plan
    tokens: Tokens
    known: Sequence[Site]  # all sites of the model, or of the part of it that this pass runs
    key: Array | None = None
    train: bool = False
    memory: Memory = dataclasses.field(default_factory=dict)
    stages: dict[str, Stage] = dataclasses.field(default_factory=dict)
    signals: dict[str, Any] = dataclasses.field(default_factory=dict)
    given: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # signals that no layer makes
    hidden: list[Array] | None = None  # block outputs, if asked for
    entry: Any = None  # what a language model's first layer read

    slots: Collection[str] = ("inputs",)  # slots of the plan that the model honours, beside its sites

    def __post_init__(self):
        self.plan.check(self.known, self.slots)

    def reduce(self, site: Site) -> None:
        """Applies the reducer placed at `site`, if any.

        Raises UserError where no layer has given a signal that it reads, or it leaves another number of tokens than its
        `count` says.
        """
        reducer = self.plan.sites.get(site)
        if reducer is None:
            return
        known = {**self.given, **self.signals}
        missing = [name for name in reducer.reads if name not in known]
        if missing:
            raise UserError(
                f"{type(reducer).__name__} at {site} reads {', '.join(missing)}, which no attention layer has given "
                "since the last change of tokens: place it after an attention layer, or compose both at one site."
            )
        s = Signals(**{name: known[name] for name in reducer.reads}, key=self.key, train=self.train)
        before, count = self.tokens, self.tokens.count
        with jax.named_scope(str(site)):
            self.tokens, self.memory = reducer(before, s, self.memory)
            score = _patch_score(reducer, before, s, self.memory)
            self.stages[str(site)] = Stage(self.tokens.owner, self.tokens.position, score)
        if self.tokens.count != count:
            self.signals = {}
        if site.stage not in ("projector", "llm", "cross"):  # there, rows of several crops share the slots
            self._check_count(reducer, site, before)

    def _check_count(self, reducer: Reducer, site: Site, before: Tokens) -> None:
        left, whole = self.tokens.patches, before.patches
        said = reducer.count(whole)
        if left != said and not (self.train and left == whole):
            raise UserError(
                f"{type(reducer).__name__} at {site} leaves {left} of {whole} tokens, but its count() says {said}: "
                "make them agree."
            )


def _patch_score(reducer: Reducer, tokens: Tokens, s: Signals, memory: Memory) -> Array | None:
    if not hasattr(reducer, "score"):
        return None
    per_token = reducer.score(tokens, s, memory)
    per_patch = jnp.take_along_axis(per_token, jnp.maximum(tokens.owner, 0), 1)
    return jnp.where(tokens.owner >= 0, per_patch, jnp.nan)


def wanted(plan: Plan, depth: int, stage: str) -> list[tuple[str, ...]]:
    """For every layer of a stage the signals that its attention must record."""
    wants: list[set[str]] = [set() for _ in range(depth)]
    for site, reducer in plan.sites.items():
        last = depth - 1 if site.layer is None else site.layer - (site.where == "input")
        if site.stage == stage and 0 <= last < depth:
            wants[last].update(reducer.reads)
    return [made_by_attention(reads) for reads in wants]


def run_blocks(
    blocks: nnx.Module,
    depth: int,
    run: Run,
    *,
    prefix: str = "tower",
    remat: bool = False,
    part: range | None = None,
    first: int = 0,
) -> Run:
    """Runs `depth` blocks, stacked or a sequence of them (`Stacked`), over `run.tokens`. Changes and returns `run`.

    part: numbers of the blocks to run, where the model does something of its own between blocks. first: number of the
    stack's first block, where `depth` counts the blocks of several stacks.
    """
    layers = Stacked(blocks, remat=remat, scope=f"{prefix}.blocks", first=first)
    wants = wanted(run.plan, depth, prefix)
    part = range(depth) if part is None else part

    def whole(tokens: Tokens, layer) -> Array:
        tokens, _ = layer.attend(tokens)
        return layer.feed_forward(tokens).x

    def scan(tokens: Tokens, start: int, stop: int) -> Tokens:
        keep = run.hidden is not None

        def body(layer, x):
            x = whole(tokens.replace(x=x), layer)
            return x, (x if keep else None)

        x, ys = layers.scan(body, tokens.x, start, stop)
        if keep:
            run.hidden.extend(ys)
        return tokens.replace(x=x)

    def single(i: int) -> None:
        def first(tokens, layer):
            return layer.attend(tokens, wants[i])

        def second(tokens, layer):
            return layer.feed_forward(tokens)

        first, second = (jax.checkpoint(f) if remat else f for f in (first, second))
        layer = layers.layer(i)
        with jax.named_scope(f"{prefix}.block.{i}"):
            run.tokens, run.signals = first(run.tokens, layer)
        run.reduce(Site(prefix, i, "after_attention"))
        with jax.named_scope(f"{prefix}.block.{i}"):
            run.tokens = second(run.tokens, layer)
        if run.hidden is not None:
            run.hidden.append(run.tokens.x)

    i = part.start
    while i < part.stop:
        run.reduce(Site(prefix, i, "input"))
        stop = _segment_end(i, part.stop, wants, run.plan, prefix)
        if stop - i <= 1:
            single(i)
            stop = i + 1
        else:
            run.tokens, run.signals = scan(run.tokens, i, stop), {}
        run.reduce(Site(prefix, stop - 1, "output"))
        i = stop
    if part.stop == depth:  # the mark of a reducer in this stack does not bias the attention of what comes after it
        run.tokens = run.tokens.replace(proportional=False)
    return run


def _segment_end(i: int, depth: int, wants: Sequence[tuple[str, ...]], plan: Plan, stage: str) -> int:
    """End of the run of blocks from i that no reducer reads or is placed in; i itself if block i must run alone."""
    j = i
    while j < depth and not wants[j] and Site(stage, j, "after_attention") not in plan.sites:
        if j > i and Site(stage, j, "input") in plan.sites:
            break
        j += 1
        if Site(stage, j - 1, "output") in plan.sites:
            break
    return j
