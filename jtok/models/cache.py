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
from jtok.models.cross import CrossCache
from jtok.models.decoder import Decoder, Layer, Stack, counted


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
    """Tokens that there is room for."""
    return min(cache.slots - int(cache.used) for cache in caches if isinstance(cache, Cache))


def new_cache(
    k: Float[Array, "layers B L Hk Dh"], v: Array, position: Int[Array, "B L P"], valid: Bool[Array, "B L"], room: int
) -> Cache:
    """A cache that holds a prompt and has `room` more slots."""
    behind = [(0, 0), (0, 0), (0, room), (0, 0), (0, 0)]
    furthest = jnp.max(jnp.where(valid[..., None], position, -1), (1, 2))
    return Cache(
        k=jnp.pad(k, behind),
        v=jnp.pad(v, behind),
        position=jnp.pad(position, behind[1:4]),
        valid=jnp.pad(valid, behind[1:3]),
        next=furthest + 1,
        used=jnp.asarray(k.shape[2], jnp.int32),
    )


def append(
    decoder: Decoder, caches: Caches, x: Float[Array, "B T D"], valid: Bool[Array, "B T"]
) -> tuple[Float[Array, "B T D"], Caches]:
    """Runs T new tokens over what was read so far and writes them into the next T slots.

    Returns the last layer's outputs and the caches. There must be room: the caller counts, since slots are not known
    while tracing. In a row the valid tokens take consecutive positions, which differ by segment after renumbering.
    """
    stack, start, crossed, written = Stack(decoder), 0, 0, []
    for cache in caches:
        if isinstance(cache, CrossCache):
            x = decoder.cross.layer(crossed).read(x, cache)
            crossed += 1
        else:
            x, cache = _through(decoder, stack, start, cache, x, valid)
            start += cache.layers
        written.append(cache)
    return x, tuple(written)


def _through(decoder: Decoder, stack: Stack, start: int, cache: Cache, x: Array, valid: Array) -> tuple[Array, Cache]:
    """The layers of one cache."""
    position = counted(valid, cache.position.shape[-1], cache.next[:, None])
    turn, at = decoder.turn(position), cache.used
    everywhere = lax.dynamic_update_slice(cache.valid, valid, (0, at))

    def body(layer: Layer, carry, i):
        x, old_k, old_v = carry
        q, new_k, new_v = layer.project(x, turn)
        k = lax.dynamic_update_slice(old_k, new_k[None], (i, 0, at, 0, 0))
        v = lax.dynamic_update_slice(old_v, new_v[None], (i, 0, at, 0, 0))
        if q.shape[1] == 1:  # every written slot is in the past, so the mask of validity is all there is
            y = kernels.attention_scores(q, k[i], v[i], valid=everywhere).out
        else:  # a token sees what was written before, and those of its block that come before it
            both = [jnp.concatenate([a[i], b], 1) for a, b in ((old_k, new_k), (old_v, new_v))]
            mask = jnp.concatenate([cache.valid, valid], 1)
            y = kernels.attention_scores(q, *both, valid=mask, causal=True).out
        return (layer.finish(x, y), k, v), None

    (x, k, v), _ = stack.scan(body, (x, cache.k, cache.v), start, start + cache.layers, jnp.arange(cache.layers))
    added = valid.sum(1, dtype=jnp.int32)
    position = lax.dynamic_update_slice(cache.position, position, (0, at, 0))
    return x, Cache(k, v, position, everywhere, cache.next + added, at + x.shape[1])
