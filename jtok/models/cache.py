"""Keys and values of what was read so far, with the position and the validity of every slot.

A decoder whose tokens were reduced on the way up has one `Cache` for each run of layers between two sites, since each
holds another number of slots. Slots are never moved: rows of different length leave invalid slots between their prompt
and their answer, which nobody attends to, and positions say where a token stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
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


Caches = tuple[Cache, ...]


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
    decoder: Decoder, caches: Sequence[Cache], x: Float[Array, "B T D"], valid: Bool[Array, "B T"]
) -> tuple[Float[Array, "B T D"], Caches]:
    """Runs T new tokens over what was read so far and writes them into the next T slots.

    Returns the last layer's outputs and the caches. There must be room: the caller counts, since slots are not known
    while tracing. In a row the valid tokens take consecutive positions, which differ by segment after renumbering.
    """
    stack, start, written = Stack(decoder), 0, []
    for cache in caches:
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
        x, k, v = carry
        q, new_k, new_v = layer.project(x, turn)
        mine, theirs = lax.dynamic_index_in_dim(k, i, 0, False), lax.dynamic_index_in_dim(v, i, 0, False)
        y = _attend(q, new_k, new_v, mine, theirs, cache.valid, valid, everywhere, at)
        k = lax.dynamic_update_slice(k, new_k[None].astype(k.dtype), (i, 0, at, 0, 0))
        v = lax.dynamic_update_slice(v, new_v[None].astype(v.dtype), (i, 0, at, 0, 0))
        return (layer.finish(x, y), k, v), None

    (x, k, v), _ = stack.scan(body, (x, cache.k, cache.v), start, start + cache.layers, jnp.arange(cache.layers))
    added = valid.sum(1, dtype=jnp.int32)
    position = lax.dynamic_update_slice(cache.position, position, (0, at, 0))
    return x, Cache(k, v, position, everywhere, cache.next + added, at + x.shape[1])


def _attend(q, new_k, new_v, k, v, old, new, everywhere, at) -> Array:
    if q.shape[1] == 1:  # every written slot is in the past, so the mask of validity is all there is
        k, v = (lax.dynamic_update_slice(a, b.astype(a.dtype), (0, at, 0, 0)) for a, b in ((k, new_k), (v, new_v)))
        return kernels.attention_scores(q, k, v, valid=everywhere).out
    k, v, valid = jnp.concatenate([k, new_k], 1), jnp.concatenate([v, new_v], 1), jnp.concatenate([old, new], 1)
    return kernels.attention_scores(q, k, v, valid=valid, causal=True).out
