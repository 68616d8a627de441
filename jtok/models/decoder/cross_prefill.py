"""Prefill for decoders with cross-attention layers; visual tokens may be reduced before each of these.

The text runs through the layers between two cross-attention layers under one `lax.scan`. Layers do not change
the visual tokens: the site `cross.K` is placed before each cross-attention layer (K counts these layers from
0), and the tokens kept there are what this layer and all later ones read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok import kernels
from jtok.cache import new_cache
from jtok.errors import UserError
from jtok.layers.stack import Run, wanted
from jtok.layers.stacked import Stacked
from jtok.layers.tagged import tagged_attention
from jtok.models.decoder.cross import CrossCache, CrossDecoder, CrossLayer
from jtok.models.decoder.decoder import Layer
from jtok.models.decoder.sequence import Text
from jtok.plan import Plan
from jtok.reducer import Compose, Reducer
from jtok.sites import LLM_INPUT, Site
from jtok.tokens import Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class View:
    """What the text may attend to: V tiles, whose tokens may be reduced, and F tokens of tiles that pad images.

    In transformers, whose logits we match, an id with no visible tile (one placed before the first image) attends to
    all tiles, padding included; in the original code it attends to nothing. Later ids never attend to padding tiles.
    """

    visible: Bool[Array, "B M V"]  # tiles that each of M ids may attend to
    last: Bool[Array, "B V"]  # tiles that later text may attend to: those of the last id
    filling: Float[Array, "B F D"] | None = None  # projected
    filling_valid: Bool[Array, "B F"] | None = None

    @property
    def open(self) -> Bool[Array, "B M"]:
        """Whether an id may attend to any tile."""
        return self.visible.any(-1)


def cross_prefill(decoder: CrossDecoder, text: Text, view: View, run: Run, max_new_tokens: int) -> tuple[Text, tuple]:
    """(the text after the last layer, the caches in the order of the layers). Updates `run` in place.

    `run.tokens` are the visual tokens of each row, None without an image.
    """
    stack, caches, at = decoder.layers, [], 0
    wants = wanted(run.plan, len(decoder.config.cross), "cross")
    for k, depth in enumerate(decoder.config.cross):
        if depth > at:
            text, cache = _self_attention(decoder, stack, text, at, depth, max_new_tokens)
            caches.append(cache)
            at = depth
        if run.tokens is not None:
            layer = decoder.cross.layer(k)
            site = Site("cross", k, "input")
            run.signals |= _at_site(decoder, layer, text, view, run, run.plan.sites.get(site))
            run.reduce(site)
            with jax.named_scope(f"cross.{k}"):
                text, cache, run.signals = _cross(layer, text, view, run.tokens, wants[k])
            caches.append(cache)
    if at < decoder.config.depth:
        text, cache = _self_attention(decoder, stack, text, at, decoder.config.depth, max_new_tokens)
        caches.append(cache)
    return text, tuple(caches)


def _self_attention(decoder: CrossDecoder, stack: Stacked, text: Text, start: int, stop: int, max_new_tokens: int):
    """(the text after self-attention layers [start, stop), their cache)."""
    rope = decoder.rope(text.position)

    def body(layer: Layer, x: Array):
        q, k, v = layer.project(x, rope)
        return layer.finish(x, kernels.attention_scores(q, k, v, valid=text.valid, causal=True).out), (k, v)

    x, (k, v) = stack.scan(body, text.x, start, stop)
    return dataclasses.replace(text, x=x), new_cache(k, v, text.position, text.valid, max_new_tokens)


def _cross(layer: CrossLayer, text: Text, view: View, tokens: Tokens, wants: Collection[str]):
    """(the text after a cross-attention layer, its cache, the signals of `wants`)."""
    q, (k, v), n = layer.queries(text.x), layer.states(tokens.x), tokens.count
    bias = jnp.log(jnp.maximum(tokens.size, 1e-6)) if tokens.proportional else None
    segment = jnp.clip(tokens.segment, 0, view.last.shape[1] - 1)
    tiles = segment[..., None] == jnp.arange(view.last.shape[1])
    tiles_left = (tiles & tokens.mask()[..., None]).any(1)
    sees = (view.visible & tiles_left[:, None]).any(-1)  # some visible tile still has tokens
    everything = _with_filling(layer, view, (k, v, tokens.mask(), bias, tiles))
    index = _rows(text, wants)
    result = _attend(q, view, *everything, rows=index, return_probabilities=index is not None)
    y = jnp.where((sees | ~view.open)[..., None, None], result.out, 0)
    signals = {"keys": k, "values": v}
    if index is not None:
        p = result.probabilities[..., :n] * jnp.take_along_axis(sees, index, 1)[:, None, :, None]
        signals["last_token_attention"] = p[:, :, 0]
        signals["text_attention"] = p[:, :, 1:]
    if "attention_received" in wants:
        weights = (text.valid & sees).astype(jnp.float32)
        signals["attention_received"] = _attend(q, view, *everything, rows="all", row_weights=weights).received[:, :n]
    now = tokens.mask() & jnp.take_along_axis(view.last, segment, 1)
    cache = CrossCache(k, v, now, view.last.any(-1), bias)
    text = dataclasses.replace(text, x=layer.finish(text.x, y, view.open))
    return text, cache, {name: signals[name] for name in wants if name in signals}


def _attend(q: Array, view: View, k: Array, v: Array, valid: Array, bias: Array | None, tiles: Array, **options: Any):
    """Masked attention: a tile is hidden from ids that see only others, padding tiles from ids that see any tile."""
    hidden = jnp.concatenate([view.open[..., None] & ~view.visible, view.open[..., None]], -1)
    return tagged_attention(q, k, v, hidden, tiles, valid=valid, bias=bias, **options)


def _with_filling(layer: CrossLayer, view: View, visual: tuple) -> tuple:
    """(keys, values, validity, bias, tags) of the visual tokens followed by those of padding tiles."""
    k, v, valid, bias, tiles = visual
    tags = jnp.pad(tiles, [(0, 0), (0, 0), (0, 1)])
    if view.filling is None:
        return k, v, valid, bias, tags
    filling_k, filling_v = layer.states(view.filling)
    extra = filling_k.shape[1]
    bias = None if bias is None else jnp.pad(bias, [(0, 0), (0, extra)])
    filling_tags = jnp.broadcast_to(jnp.arange(tags.shape[2]) == tags.shape[2] - 1, (k.shape[0], extra, tags.shape[2]))
    pairs = ((k, filling_k), (v, filling_v), (valid, view.filling_valid), (tags, filling_tags))
    k, v, valid, tags = (jnp.concatenate(pair, 1) for pair in pairs)
    return k, v, valid, bias, tags


def _rows(text: Text, wants: Collection[str]) -> Array | None:
    """The last id, then the question's: the rows of attention that a reducer reads."""
    if not {"last_token_attention", "text_attention"}.intersection(wants):
        return None
    last = jnp.maximum(text.valid.sum(1, keepdims=True, dtype=jnp.int32) - 1, 0)
    return jnp.concatenate([last, text.question], 1) if "text_attention" in wants else last


def _at_site(
    decoder: CrossDecoder, layer: CrossLayer, text: Text, view: View, run: Run, reducer: Reducer | None
) -> dict[str, Array]:
    """The signals at a site that do not come from the previous layer's attention."""
    wants, signals = set(reducer.reads if reducer is not None else ()), {}
    if "text_valid" in wants:
        signals["text_valid"] = text.question_valid
    arrays = {"text_features": text.x, "text_position": text.position}
    if "text_normed" in wants:
        arrays["text_normed"] = decoder.norm(text.x)
    signals |= {name: kernels.gather(array, text.question) for name, array in arrays.items() if name in wants}
    if "next_last_token_attention" in wants:
        _, _, next_signals = _cross(layer, text, view, run.tokens, {"last_token_attention"})
        signals["next_last_token_attention"] = next_signals["last_token_attention"]
    return signals


def fit(plan: Plan, layers: Sequence[int]) -> Plan:
    """Moves a plan made for visual tokens inside the decoder to a decoder with cross-attention at `layers`.

    `llm.input` becomes `cross.0`. A reducer before layer K reads the attention of layer K - 1: here that of the
    first cross-attention layer at or after K - 1, so it is placed before the next one. Raises UserError if there is
    none.
    """
    sites: dict[Site, Reducer] = {}
    for site, reducer in plan.sites.items():
        if site == LLM_INPUT:
            site = Site("cross", 0, "input")
        elif site.stage == "llm":
            number = site.layer + (site.where != "input")
            before = [i for i, layer in enumerate(layers) if layer >= number - 1]
            if len(before) < 2:
                raise UserError(f"the decoder reads images in layers {list(layers)}, and {site} is too late for them.")
            site = Site("cross", before[1], "input")
        sites[site] = Compose(sites[site], reducer) if site in sites else reducer
    return dataclasses.replace(plan, sites=sites)
