"""Reads a sequence: runs a decoder's layers with reducers between them, and keeps what decoding needs.

Layers between two sites run under one `lax.scan`; the layer before a site runs alone if the reducer there reads its
attention. Every run of layers between sites gets a cache of its own, as long as the sequence was there.
"""

from __future__ import annotations

from collections.abc import Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jtok import kernels
from jtok.layers.rotary import rotate
from jtok.layers.stack import Run
from jtok.layers.stacked import Stacked
from jtok.models.decoder.cache import Cache, Caches, new_cache, received, with_free_slots
from jtok.models.decoder.decoder import Decoder, Layer
from jtok.models.decoder.sequence import Positions, TokenSequence
from jtok.plan import Reducer

#: Signals that are recorded in the layer before a site.
_IN_LAYER = {
    "keys",
    "queries",
    "values",
    "attention_received",
    "last_token_attention",
    "text_attention",
    "text_keys",
}


def llm_sites(depth: int) -> list[str]:
    """Sites of a language model: before its layers. `llm.layer.K.input` stands behind layer K - 1."""
    return ["llm.input", *(f"llm.layer.{i}.input" for i in range(1, depth))]


def prefill(
    decoder: Decoder, sequence: TokenSequence, run: Run, max_new_tokens: int, positions: Positions
) -> tuple[TokenSequence, Caches]:
    """The last layer's outputs as a sequence, and the caches with `max_new_tokens` free slots. Changes `run`.

    `run.plan` says what stands where; reducers see the visual tokens only. A cache policy at `decode` may shrink what
    each run of layers hands over.
    """
    stack, depth = decoder.layers, decoder.config.depth
    sites = {0: "llm.input"} | {i: f"llm.layer.{i}.input" for i in range(1, depth)}
    cuts = [i for i in sites if run.plan.at(sites[i]) is not None]
    policy = run.plan.at("decode")
    edges = [0, *(i for i in cuts if i), depth]
    caches = []
    for start, stop in zip(edges, edges[1:], strict=False):
        if start in cuts:
            sequence = _reduce(decoder, stack, sequence, run, sites[start], start, positions)
        following = run.plan.at(sites[stop]) if stop in cuts else None
        wants = _IN_LAYER.intersection(following.reads if following is not None else ())
        watch = policy is not None and "last_token_attention" in policy.reads
        sequence, cache, run.signals = _layers(decoder, stack, sequence, start, stop, wants, watch)
        cache = cache if policy is None else policy(cache, first=True)
        caches.append(with_free_slots(cache, max_new_tokens))
    return sequence, tuple(caches)


def _layers(
    decoder: Decoder,
    stack: Stacked,
    sequence: TokenSequence,
    start: int,
    stop: int,
    wants: Collection[str],
    watch: bool,
) -> tuple[TokenSequence, Cache, dict[str, Array]]:
    """(the sequence after layers [start, stop), their cache without free slots, signals of the last of them).

    watch: the cache shall hold what the last token attends to.
    """
    rope, causal, bias = decoder.rope(sequence.position), not decoder.config.bidirectional, sequence.bias

    def kept(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array | None]:
        last = kernels.gather(q, sequence.last[:, None])
        return k, v, received(last, k, sequence.valid, bias) if watch else None

    def whole(layer: Layer, x: Array):
        q, k, v = layer.project(x, rope)
        y = kernels.attention_scores(q, k, v, valid=sequence.valid, bias=bias, causal=causal).out
        return layer.finish(x, y), kept(q, k, v)

    x, alone, parts, signals = sequence.x, bool(wants), [], {}
    if stop - alone > start:
        x, many = stack.scan(whole, x, start, stop - alone)
        parts.append(many)
    if alone:
        with jax.named_scope(f"llm.layer.{stop - 1}"):
            layer = stack.layer(stop - 1)
            q, k, v = layer.project(x, rope)
            y, signals = _attend(q, k, v, sequence, causal, wants)
            x = layer.finish(x, y)
        parts.append(jax.tree.map(lambda a: a[None], kept(q, k, v)))
    k, v, attention = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
    facts = {"visual": sequence.is_visual, "bias": bias, "attention": attention, "visuals": sequence.slots.shape[1]}
    return sequence.replace(x=x), new_cache(k, v, sequence.position, sequence.valid, 0, **facts), signals


def _attend(q: Array, k: Array, v: Array, sequence: TokenSequence, causal: bool, wants: Collection[str]):
    """(attention output, the signals of `wants` that attention gives): of the visual tokens' columns."""
    asking, weight = sequence.asking
    rows = [asking] if "last_token_attention" in wants else []
    rows += [sequence.question] if "text_attention" in wants else []
    masks = {"valid": sequence.valid, "bias": sequence.bias, "causal": causal}
    index = jnp.concatenate(rows, 1) if rows else None
    result = kernels.attention_scores(q, k, v, **masks, rows=index, return_probabilities=index is not None)
    columns, few = sequence.slots, {}
    if index is not None:
        seen = jnp.take_along_axis(result.probabilities, columns[:, None, None], 3)
        few["last_token_attention"] = jnp.einsum("bhrn,br->bhn", seen[:, :, : weight.shape[1]], weight)
        few["text_attention"] = seen[:, :, -sequence.text.question.shape[1] :]
    if "attention_received" in wants:
        weights = sequence.valid.astype(jnp.float32)
        received = kernels.attention_scores(q, k, v, **masks, rows="all", row_weights=weights).received
        few["attention_received"] = jnp.take_along_axis(received, columns, 1)
    arrays = {"queries": (q, columns), "keys": (k, columns), "values": (v, columns)}
    arrays["text_keys"] = (k, sequence.question)
    few |= {name: kernels.gather(*arrays[name]) for name in arrays if name in wants}
    return result.out, {name: few[name] for name in wants}


def _reduce(
    decoder: Decoder, stack: Stacked, sequence: TokenSequence, run: Run, site: str, layer: int, positions: Positions
) -> TokenSequence:
    """Lets the reducer at a site see the visual tokens, and puts the sequence together again."""
    before = sequence.visual_tokens()
    run.tokens = before
    run.signals = {**run.signals, **_at_site(decoder, stack, sequence, run.plan.at(site), layer)}
    run.reduce(site)
    run.signals = {}
    if run.tokens is before:
        return sequence
    if run.tokens.x is before.x and positions in ("keep", "restore"):  # hidden at most: nothing has moved
        return sequence.hiding(run.tokens)
    return sequence.with_visual(run.tokens, positions)


def _at_site(
    decoder: Decoder, stack: Stacked, sequence: TokenSequence, reducer: Reducer, layer: int
) -> dict[str, Array]:
    """The signals that need no attention of the layer before."""
    wants, few = set(reducer.reads), {}
    if "text_valid" in wants:
        few["text_valid"] = sequence.text.question_valid
    arrays = dict.fromkeys(("rotary_position", "text_position"), sequence.position) | {"text_features": sequence.x}
    if wants & {"normed", "text_normed"}:
        arrays |= dict.fromkeys(("normed", "text_normed"), decoder.norm(sequence.x))
    for name in wants & arrays.keys():
        slots = sequence.question if name.startswith("text_") else sequence.slots
        few[name] = kernels.gather(arrays[name], slots)
    if "rotary_logits" in wants:
        few["rotary_logits"] = _rotary_logits(decoder, sequence)
    if "next_last_token_attention" in wants:
        few["next_last_token_attention"] = _ahead(decoder, stack.layer(layer), sequence)
    return {name: value for name, value in few.items() if name in wants}


def _ahead(decoder: Decoder, layer: Layer, sequence: TokenSequence) -> Array:
    """Attention of the last token to the visual ones with the weights of the layer to come, [B,H,N]."""
    q, k, _ = layer.project(sequence.x, decoder.rope(sequence.position))
    asking, weight = sequence.asking
    how = {"valid": sequence.valid, "bias": sequence.bias, "return_probabilities": True}
    if sequence.text.asks is None:  # the last token sees every valid one
        p = kernels.attention_scores(kernels.gather(q, asking), k, k, rows=(0,), **how).probabilities
    else:
        causal = not decoder.config.bidirectional
        p = kernels.attention_scores(q, k, k, rows=asking, causal=causal, **how).probabilities
    p = jnp.einsum("bhrl,br->bhl", p, weight)
    return jnp.take_along_axis(p, sequence.slots[:, None], 2)


def _rotary_logits(decoder: Decoder, sequence: TokenSequence) -> Array:
    """What the question's tokens would give the visual ones if all queries and keys were ones, [B,T,N]."""
    ones = jnp.ones((*sequence.valid.shape, 1, decoder.config.head_dim), jnp.float32)
    turned = rotate(ones, decoder.rope(sequence.position))[:, :, 0]
    text, visual = (kernels.gather(turned, slots) for slots in (sequence.question, sequence.slots))
    return jnp.einsum("btd,bnd->btn", text, visual) * decoder.config.head_dim**-0.5
