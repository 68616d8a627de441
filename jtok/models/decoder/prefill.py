"""Prefill: runs a decoder's layers with reducers between them, and keeps what decoding needs.

Layers between two cuts run under one `lax.scan`; a layer runs alone if a reducer after it reads its attention, or is
placed between its attention and its MLP. Every run of layers between cuts gets a cache of its own, as long as the
sequence was where the run began.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jtok import kernels
from jtok.cache import Cache, new_cache, with_free_slots
from jtok.errors import UserError
from jtok.layers.stack import Run, wanted
from jtok.models.decoder.append import Caches, received
from jtok.models.decoder.decoder import Decoder, Layer
from jtok.models.decoder.sequence import Positions, TokenSequence
from jtok.models.decoder.site_signals import attention_signals, site_signals
from jtok.plan import Plan
from jtok.signals import Signals, made_by_attention
from jtok.sites import Site
from jtok.slots import Attending, AttentionRule, CacheStep
from jtok.tokens import rename


def prefill(
    decoder: Decoder, sequence: TokenSequence, run: Run, free: int, positions: Positions
) -> tuple[TokenSequence, Caches]:
    """The last layer's outputs as a sequence, and the caches with `free` free slots. Updates `run` in place.

    `run.plan` says what is placed where; reducers see the visual tokens only. `run.entry` is the sequence as the first
    layer reads it.
    """
    reader, plan, depth = _Reader(decoder, run, positions), run.plan, decoder.config.depth
    edges = cuts(plan, depth)
    caches = []
    for start, stop in zip(edges, edges[1:], strict=False):
        sequence = reader.reduced(sequence, Site("llm", start, "input"))
        sequence = reader.after_exits(sequence, start)
        if start == 0:
            run.entry = sequence
        sequence, cache = reader.layers(sequence, start, stop)
        sequence = reader.reduced(sequence, Site("llm", stop - 1, "output"))
        cache = cache if plan.cache is None else plan.cache(cache, CacheStep(True, start, depth))
        caches.append(with_free_slots(cache, free))
    return sequence, tuple(caches)


def cuts(plan: Plan, depth: int) -> list[int]:
    """Layers before which a new run of layers begins, with 0 and `depth`: no plan changes anything within a run."""
    inside = {site.layer + (site.where != "input") for site in plan.sites if site.stage == "llm"}
    inside |= set(plan.layers.exits) if plan.layers is not None else set()
    if plan.attention is not None:
        ruled = plan.attention.layers(depth)
        inside |= {ruled.start, ruled.stop}
    inside |= set(plan.cache.cuts(depth)) if plan.cache is not None else set()
    return [0, *sorted(layer for layer in inside if 0 < layer < depth), depth]


class _Reader:
    """The prefill of one batch of prompts."""

    def __init__(self, decoder: Decoder, run: Run, positions: Positions):
        self.decoder, self.run, self.positions, self.stack = decoder, run, positions, decoder.layers
        plan, depth = run.plan, decoder.config.depth
        self.wants = [set(names) for names in wanted(plan, depth, "llm")]
        for layer in plan.layers.exits if plan.layers is not None else ():
            self.wants[layer - 1] |= set(made_by_attention(plan.layers.reads))
        ruled = range(0) if plan.attention is None else plan.attention.layers(depth)
        self.rule_of = lambda layer: plan.attention if layer in ruled else None
        readers = [part for part in (plan.cache, plan.decoding) if part is not None]
        self.watch = any("last_token_attention" in part.reads for part in readers)

    def reduced(self, sequence: TokenSequence, site: Site) -> TokenSequence:
        """The sequence after the reducer at a site, if there is one."""
        run, reducer = self.run, self.run.plan.sites.get(site)
        if reducer is None or not sequence.slots.shape[1]:  # visual tokens may all have left
            return sequence
        before = sequence.visual_tokens()
        run.tokens = before
        run.signals = {**run.signals, **site_signals(self.decoder, self.stack, sequence, reducer.reads, site)}
        run.reduce(site)
        if run.tokens is before:
            return sequence
        if run.tokens.x is before.x and self.positions in ("keep", "restore"):  # at most masked: nothing has moved
            return sequence.hiding(run.tokens)
        return sequence.with_visual(run.tokens, self.positions)

    def after_exits(self, sequence: TokenSequence, layer: int) -> TokenSequence:
        """The sequence without the visual tokens that exit before a layer."""
        rule, run = self.run.plan.layers, self.run
        if rule is None or layer not in rule.exits:
            return sequence
        tokens, site = sequence.visual_tokens(), Site("llm", layer, "input")
        known = {**run.signals, **site_signals(self.decoder, self.stack, sequence, rule.reads, site)}
        missing = [name for name in rule.reads if name not in known]
        if missing:
            raise UserError(
                f"{type(rule).__name__} reads {', '.join(missing)} before layer {layer}, where a reducer has changed "
                "the tokens since: place that reducer elsewhere."
            )
        s = Signals(**{name: known[name] for name in rule.reads}, key=run.key, train=run.train)
        leaves = rule.leave(tokens, s, run.memory, layer)
        if leaves is None:
            nothing = jnp.zeros((tokens.x.shape[0], 0), jnp.int32)
            return sequence.with_visual(tokens.take(nothing), self.positions)
        stays, slots = tokens.mask() & ~leaves, jnp.arange(tokens.count, dtype=jnp.int32)
        owner = rename(tokens.owner, jnp.where(stays, slots, -1))
        return sequence.hiding(tokens.replace(valid=stays, owner=owner))

    def layers(self, sequence: TokenSequence, start: int, stop: int) -> tuple[TokenSequence, Cache]:
        """(the sequence after layers [start, stop), their cache without free slots). Leaves signals of the last one."""
        middle, wants = Site("llm", stop - 1, "after_attention"), self.wants[stop - 1]
        alone = bool(wants) or middle in self.run.plan.sites
        entered, parts = sequence, []
        attention = _Attention(self.decoder, sequence, self.rule_of(start), self.watch)
        self.run.signals = {}
        if stop - alone > start:
            x, many = self.stack.scan(attention.whole, sequence.x, start, stop - alone)
            sequence = sequence.replace(x=x)
            parts.append(many)
        if alone:
            with jax.named_scope(f"llm.layer.{stop - 1}"):
                layer = self.stack.layer(stop - 1)
                y, kept, self.run.signals = attention.one(layer, sequence, wants)
                sequence = sequence.replace(x=layer.attended(sequence.x, y))
            sequence = self.reduced(sequence, middle)
            with jax.named_scope(f"llm.layer.{stop - 1}"):
                sequence = sequence.replace(x=layer.feed_forward(sequence.x))
            parts.append(jax.tree.map(lambda a: a[None], kept))
        k, v, last, marks = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
        facts = {"visual": entered.is_visual, "bias": entered.bias, "attention": last, "marks": marks}
        facts["visuals"] = entered.slots.shape[1]
        return sequence, new_cache(k, v, entered.position, entered.valid, 0, **facts)


@dataclasses.dataclass
class _Attention:
    """Attention of the layers of one run: the fused kernel, or a rule built on it."""

    decoder: Decoder
    sequence: TokenSequence  # as the run began: positions, validity, which slots are visual
    rule: AttentionRule | None
    watch: bool  # the cache shall hold what the last token attends to

    def __post_init__(self):
        self.rope = self.decoder.rope(self.sequence.position)
        causal = not self.decoder.config.bidirectional
        self.masks = {"valid": self.sequence.valid, "bias": self.sequence.bias, "causal": causal}

    def whole(self, layer: Layer, x: Array):
        """(output of a layer, what its cache holds), for `lax.scan`."""
        q, k, v = layer.project(x, self.rope)
        y, marks = self._attend(x, q, k, v)
        return layer.finish(x, y), self._kept(q, k, v, marks)

    def one(self, layer: Layer, sequence: TokenSequence, wants: Collection[str]):
        """(output of a layer's attention, what its cache holds, the signals of `wants`)."""
        q, k, v = layer.project(sequence.x, self.rope)
        y, signals = attention_signals(q, k, v, sequence, self.masks["causal"], wants)
        marks = {}
        if self.rule is not None:
            y, marks = self._attend(sequence.x, q, k, v)
        return y, self._kept(q, k, v, marks), signals

    def _attend(self, x: Array, q: Array, k: Array, v: Array) -> tuple[Array, dict[str, Array]]:
        def fused(v: Array, **masks) -> Array:
            return kernels.attention_scores(q, k, v, **{**self.masks, **masks}).out

        if self.rule is None:
            return fused(v), {}
        sequence = self.sequence
        return self.rule(Attending(x, q, k, v, sequence.valid, sequence.is_visual, sequence.after_image), fused)

    def _kept(self, q: Array, k: Array, v: Array, marks: dict[str, Array]):
        sequence = self.sequence
        last = kernels.gather(q, sequence.last[:, None]) if self.watch else None
        return k, v, received(last, k, sequence.valid, sequence.bias) if self.watch else None, marks
