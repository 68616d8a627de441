"""Runs new tokens on top of a decoder's caches and appends them to these."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jtok import kernels
from jtok.cache import Cache
from jtok.layers.stacked import Stacked
from jtok.models.decoder.cross import CrossCache
from jtok.models.decoder.decoder import Decoder, Layer, running_positions
from jtok.slots import Attending, AttentionRule

#: In the order of the layers.
Caches = tuple[Cache | CrossCache, ...]


def free_slots(caches: Caches) -> int:
    """Number of tokens that the caches can still take."""
    return min(cache.slots - int(cache.used) for cache in caches if isinstance(cache, Cache))


def append(
    decoder: Decoder,
    caches: Caches,
    x: Float[Array, "B T D"],
    valid: Bool[Array, "B T"],
    rule: AttentionRule | None = None,
) -> tuple[Float[Array, "B T D"], Caches]:
    """Runs T new tokens on top of the caches and writes them into the next T slots.

    Returns the last layer's outputs and the caches. There must be T free slots: the caller checks, since the number
    of slots in use is not known while tracing. The valid tokens of a row take consecutive positions (by segment
    after renumbering).
    """
    stack, start, crossed, written = decoder.layers, 0, 0, []
    for cache in caches:
        if isinstance(cache, CrossCache):
            x = decoder.cross.layer(crossed).read(x, cache)
            crossed += 1
        else:
            ruled = rule is not None and start in rule.layers(decoder.config.depth)
            x, cache = _through(decoder, stack, start, cache, x, valid, rule if ruled else None)
            start += cache.layers
        written.append(cache)
    return x, tuple(written)


def _through(
    decoder: Decoder, stack: Stacked, start: int, cache: Cache, x: Array, valid: Array, rule: AttentionRule | None
) -> tuple[Array, Cache]:
    """Runs the layers that share one cache, with attention as `rule` says, if given."""
    position = running_positions(valid, cache.position.shape[-1], cache.next[:, None])
    rope, at = decoder.rope(position), cache.used
    cached_valid = lax.dynamic_update_slice(cache.valid, valid, (0, at))
    latest = jnp.maximum(valid.sum(1, dtype=jnp.int32) - 1, 0)[:, None]

    def body(layer: Layer, carry, i, attention, marks):
        x, old_k, old_v = carry
        q, new_k, new_v = layer.project(x, rope)
        k = lax.dynamic_update_slice(old_k, new_k[None], (i, 0, at, 0, 0))
        v = lax.dynamic_update_slice(old_v, new_v[None], (i, 0, at, 0, 0))
        if q.shape[1] == 1:  # every written slot is in the past, so the validity mask suffices
            keys, values, masks, extra = k[i], v[i], {"valid": cached_valid, "bias": cache.bias}, 0
        else:  # a token attends to the cache, and causally within its block
            keys, values = (jnp.concatenate([a[i], b], 1) for a, b in ((old_k, new_k), (old_v, new_v)))
            bias = None if cache.bias is None else jnp.pad(cache.bias, [(0, 0), (0, q.shape[1])])
            masks, extra = {"valid": jnp.concatenate([cache.valid, valid], 1), "bias": bias, "causal": True}, q.shape[1]

        def fused(values: Array, **changes) -> Array:
            return kernels.attention_scores(q, keys, values, **{**masks, **changes}).out

        if rule is None:
            y = fused(values)
        else:
            slots = [(0, 0), (0, extra)]
            padded_marks = {name: jnp.pad(mark, slots) for name, mark in marks.items()}
            visual = jnp.pad(cache.visual & cache.valid, slots)
            y, _ = rule(Attending(x, q, keys, values, masks["valid"], visual, valid, padded_marks), fused)
        if attention is not None:
            latest_attention = received(kernels.gather(q, latest), k[i], cached_valid, cache.bias)
            attention = jnp.where(valid.any(1, keepdims=True), latest_attention, attention)
        return (layer.finish(x, y), k, v), attention

    items = jnp.arange(cache.layers), cache.attention, cache.marks
    (x, k, v), attention = stack.scan(body, (x, cache.k, cache.v), start, start + cache.layers, *items)
    written = {
        "k": k,
        "v": v,
        "attention": attention,
        "position": lax.dynamic_update_slice(cache.position, position, (0, at, 0)),
        "valid": cached_valid,
        "next": cache.next + valid.sum(1, dtype=jnp.int32),
        "used": at + x.shape[1],
    }
    return x, dataclasses.replace(cache, **written)


def received(
    q: Float[Array, "B 1 H Dh"], k: Float[Array, "B S Hk Dh"], valid: Bool[Array, "B S"], bias: Array | None
) -> Float[Array, "B S"]:
    """Attention of one query token to every valid key, averaged over heads."""
    return kernels.attention_scores(q, k, k, valid=valid, bias=bias, rows=(0,)).received
