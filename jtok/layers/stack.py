"""Runs a stack of blocks with reducers standing at its sites.

Blocks between two sites run under one `lax.scan` over their stacked parameters; a block whose inside a reducer looks
at (or stands in) runs by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.layers.stacked import Stacked
from jtok.plan import Memory, Plan, Reducer
from jtok.signals import Signals
from jtok.tokens import Tokens

#: Signals that a block's attention gives.
IN_BLOCK = ("class_attention", "attention_received", "queries", "keys", "values")
#: Signals that exist only where the first token is a class token.
NEEDS_CLASS = ("class_attention",)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a site did, for pictures and analysis."""

    owner: Int[Array, "B N0"]  # token that holds each patch after the site, -1 = dropped
    position: Float[Array, "B N P"]
    score: Float[Array, "B N0"] | None  # the method's ranking of each patch on entering the site, where it has one


@dataclasses.dataclass
class Run:
    """The state of one forward pass: the tokens, and what reducers left behind."""

    plan: Plan
    tokens: Tokens
    key: Array | None = None
    train: bool = False
    memory: Memory = dataclasses.field(default_factory=dict)
    stages: dict[str, Stage] = dataclasses.field(default_factory=dict)
    signals: dict[str, Any] = dataclasses.field(default_factory=dict)
    given: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # signals that no layer makes
    hidden: list[Array] | None = None  # block outputs, if asked for

    def reduce(self, site: str) -> None:
        """Applies the reducer standing at `site`, if any."""
        reducer = self.plan.at(site)
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
        with jax.named_scope(site):
            self.tokens, self.memory = reducer(before, s, self.memory)
            score = _patch_score(reducer, before, s, self.memory)
            self.stages[site] = Stage(self.tokens.owner, self.tokens.position, score)
        if self.tokens.count != count:
            self.signals = {}


def _patch_score(reducer: Reducer, tokens: Tokens, s: Signals, memory: Memory) -> Array | None:
    if not hasattr(reducer, "score"):
        return None
    per_token = reducer.score(tokens, s, memory)
    found = jnp.take_along_axis(per_token, jnp.maximum(tokens.owner, 0), 1)
    return jnp.where(tokens.owner >= 0, found, jnp.nan)


def sites(depth: int, prefix: str = "tower") -> list[str]:
    """Names of all sites of a stack, in the order in which they are reached."""
    inner = [f"{prefix}.block.{i}.{where}" for i in range(depth) for where in ("input", "after_attention", "output")]
    return [*inner, f"{prefix}.output"]


def _wants(plan: Plan, depth: int, prefix: str) -> list[tuple[str, ...]]:
    """For every block the signals that must be recorded in it."""
    wants: list[set[str]] = [set() for _ in range(depth)]
    for i in range(depth):
        for where, block in (("input", i - 1), ("after_attention", i), ("output", i)):
            reducer = plan.at(f"{prefix}.block.{i}.{where}")
            if reducer is not None and block >= 0:
                wants[block].update(reducer.reads)
    last = plan.at(f"{prefix}.output")
    if last is not None and depth:
        wants[-1].update(last.reads)
    return [tuple(sorted(w.intersection(IN_BLOCK))) for w in wants]


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
    wants = _wants(run.plan, depth, prefix)
    has, part = run.plan.at, range(depth) if part is None else part

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
        run.reduce(f"{prefix}.block.{i}.after_attention")
        with jax.named_scope(f"{prefix}.block.{i}"):
            run.tokens = second(run.tokens, layer)
        if run.hidden is not None:
            run.hidden.append(run.tokens.x)

    i = part.start
    while i < part.stop:
        run.reduce(f"{prefix}.block.{i}.input")
        stop = _segment_end(i, part.stop, wants, has, prefix)
        if stop - i <= 1:
            single(i)
            stop = i + 1
        else:
            run.tokens, run.signals = scan(run.tokens, i, stop), {}
        run.reduce(f"{prefix}.block.{stop - 1}.output")
        i = stop
    if part.stop == depth:  # the mark of a reducer in this stack does not bias the attention of what comes behind
        run.tokens = run.tokens.replace(proportional=False)
    return run


def _segment_end(i: int, depth: int, wants: Sequence[tuple[str, ...]], has, prefix: str) -> int:
    """End of the run of blocks from i that no reducer looks into; i itself if block i must run alone."""
    j = i
    while j < depth and not wants[j] and has(f"{prefix}.block.{j}.after_attention") is None:
        if j > i and has(f"{prefix}.block.{j}.input") is not None:
            break
        j += 1
        if has(f"{prefix}.block.{j - 1}.output") is not None:
            break
    return j
