"""Keys and values of what was read so far, with the position and the validity of every slot.

A decoder whose tokens were reduced on the way up has one `Cache` for each run of layers between two sites, since each
holds another number of slots. Slots are never moved: rows of different length leave invalid slots between their prompt
and their answer, which nobody attends to, and positions say where a token stands.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
from jtok.layers.stacked import Stacked
from jtok.models.decoder.cross import CrossCache
from jtok.models.decoder.decoder import Decoder, Layer, counted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The cache of consecutive layers: S slots, of which `used` are written (in all rows alike)."""

    k: Float[Array, "layers B S Hk Dh"]  # rotated to their positions
    v: Float[Array, "layers B S Hk Dh"]
    position: Int[Array, "B S P"]
    valid: Bool[Array, "B S"]
    next: Int[Array, " B"]  # position of the next token, on all axes
    used: Int[Array, " "]
    visual: Bool[Array, "B S"]  # which slots hold visual tokens
    bias: Float[Array, "B S"] | None = None  # log of the size of each token, where attention is proportional
    attention: Float[Array, "layers B S"] | None = None  # of the latest token, mean over heads; for a cache policy
    visuals: int = dataclasses.field(default=0, metadata={"static": True})  # slots of visual tokens, at most

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.k.shape[0]

    @property
    def slots(self) -> int:
        """Number of slots S, written or not."""
        return self.k.shape[2]

    @property
    def bytes(self) -> int:
        """Size of keys and values in bytes."""
        return self.k.nbytes + self.v.nbytes


#: In the order of the layers.
Caches = tuple[Cache | CrossCache, ...]


def free_slots(caches: Caches) -> int:
    """Tokens that the caches can still take."""
    return min(cache.slots - int(cache.used) for cache in caches if isinstance(cache, Cache))


def new_cache(
    k: Float[Array, "layers B L Hk Dh"],
    v: Array,
    position: Int[Array, "B L P"],
    valid: Bool[Array, "B L"],
    free: int,
    **more,
) -> Cache:
    """A cache that holds a prompt and has `free` more slots; `more` are further fields of `Cache`."""
    furthest = jnp.max(jnp.where(valid[..., None], position, -1), (1, 2))
    used = jnp.asarray(k.shape[2], jnp.int32)
    more = {"visual": jnp.zeros_like(valid)} | more
    return with_free_slots(Cache(k=k, v=v, position=position, valid=valid, next=furthest + 1, used=used, **more), free)


def with_free_slots(cache: Cache, free: int) -> Cache:
    """The cache with `free` more slots behind those that it has."""
    rows = {axis: [(0, 0)] * axis + [(0, free)] for axis in (1, 2)}

    def padded(a: Array | None, axis: int) -> Array | None:
        return None if a is None else jnp.pad(a, rows[axis] + [(0, 0)] * (a.ndim - axis - 1))

    return _over_slots(padded, cache)


def compact(cache: Cache, slots: int) -> Cache:
    """The cache with its valid slots first and `slots` of them in all; what does not fit is lost.

    Only for a cache without free slots, as a prompt leaves it.
    """
    index = jnp.argsort(~cache.valid, 1, stable=True)[:, :slots].astype(jnp.int32)

    def taken(a: Array | None, axis: int) -> Array | None:
        if a is None:
            return None
        return kernels.gather(a, index) if axis == 1 else jax.vmap(lambda layer: kernels.gather(layer, index))(a)

    cache = _over_slots(taken, cache)
    return dataclasses.replace(cache, used=jnp.asarray(index.shape[1], jnp.int32))


def _over_slots(f, cache: Cache) -> Cache:
    """`f(array, axis of the slots)` over everything that a cache has for each slot."""
    axes = {"k": 2, "v": 2, "attention": 2, "position": 1, "valid": 1, "visual": 1, "bias": 1}
    return dataclasses.replace(cache, **{name: f(getattr(cache, name), axis) for name, axis in axes.items()})


def append(
    decoder: Decoder, caches: Caches, x: Float[Array, "B T D"], valid: Bool[Array, "B T"]
) -> tuple[Float[Array, "B T D"], Caches]:
    """Runs T new tokens over what was read so far and writes them into the next T slots.

    Returns the last layer's outputs and the caches. There must be free slots: the caller counts, since slots are not
    known while tracing. In a row the valid tokens take consecutive positions (by segment after renumbering).
    """
    stack, start, crossed, written = decoder.layers, 0, 0, []
    for cache in caches:
        if isinstance(cache, CrossCache):
            x = decoder.cross.layer(crossed).read(x, cache)
            crossed += 1
        else:
            x, cache = _through(decoder, stack, start, cache, x, valid)
            start += cache.layers
        written.append(cache)
    return x, tuple(written)


def _through(decoder: Decoder, stack: Stacked, start: int, cache: Cache, x: Array, valid: Array) -> tuple[Array, Cache]:
    """The layers of one cache."""
    position = counted(valid, cache.position.shape[-1], cache.next[:, None])
    rope, at = decoder.rope(position), cache.used
    everywhere = lax.dynamic_update_slice(cache.valid, valid, (0, at))
    latest = jnp.maximum(valid.sum(1, dtype=jnp.int32) - 1, 0)[:, None]

    def body(layer: Layer, carry, i, seen):
        x, old_k, old_v = carry
        q, new_k, new_v = layer.project(x, rope)
        k = lax.dynamic_update_slice(old_k, new_k[None], (i, 0, at, 0, 0))
        v = lax.dynamic_update_slice(old_v, new_v[None], (i, 0, at, 0, 0))
        if q.shape[1] == 1:  # every written slot is in the past, so the mask of validity is all there is
            y = kernels.attention_scores(q, k[i], v[i], valid=everywhere, bias=cache.bias).out
        else:  # a token sees what was written before, and those of its block that come before it
            both = [jnp.concatenate([a[i], b], 1) for a, b in ((old_k, new_k), (old_v, new_v))]
            mask = jnp.concatenate([cache.valid, valid], 1)
            bias = None if cache.bias is None else jnp.pad(cache.bias, [(0, 0), (0, q.shape[1])])
            y = kernels.attention_scores(q, *both, valid=mask, bias=bias, causal=True).out
        if seen is not None:
            now = received(kernels.gather(q, latest), k[i], everywhere, cache.bias)
            seen = jnp.where(valid.any(1, keepdims=True), now, seen)
        return (layer.finish(x, y), k, v), seen

    items = jnp.arange(cache.layers), cache.attention
    (x, k, v), attention = stack.scan(body, (x, cache.k, cache.v), start, start + cache.layers, *items)
    written = {
        "k": k,
        "v": v,
        "attention": attention,
        "position": lax.dynamic_update_slice(cache.position, position, (0, at, 0)),
        "valid": everywhere,
        "next": cache.next + valid.sum(1, dtype=jnp.int32),
        "used": at + x.shape[1],
    }
    return x, dataclasses.replace(cache, **written)


def received(
    q: Float[Array, "B 1 H Dh"], k: Float[Array, "B S Hk Dh"], valid: Bool[Array, "B S"], bias: Array | None
) -> Float[Array, "B S"]:
    """Attention of one token, which sees all that is valid: the mean over its heads."""
    return kernels.attention_scores(q, k, k, valid=valid, bias=bias, rows=(0,)).received
