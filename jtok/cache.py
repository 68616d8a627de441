"""Keys and values of the tokens read so far, with the position and validity of every slot.

A decoder whose tokens are reduced between layers has one `Cache` per run of layers between two sites, since each holds
a different number of slots. Slots never move during decoding: rows of different length leave invalid slots between
prompt and answer, which are masked in attention, and positions say where a token is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
from jtok.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The cache of consecutive layers: S slots, of which `used` are written (the same in all rows)."""

    k: Float[Array, "layers B S Hk Dh"]  # after RoPE
    v: Float[Array, "layers B S Hk Dh"]
    position: Int[Array, "B S P"]
    valid: Bool[Array, "B S"]
    next: Int[Array, " B"]  # position of the next token, on all axes
    used: Int[Array, " "]
    visual: Bool[Array, "B S"]  # which slots hold visual tokens
    bias: Float[Array, "B S"] | None = None  # log of the size of each token, where attention is proportional
    attention: Float[Array, "layers B S"] | None = None  # from the latest token, mean over heads; for a cache policy
    marks: Mapping[str, Array] = dataclasses.field(default_factory=dict)  # [layers,B,S], left by an attention rule
    visuals: int = dataclasses.field(default=0, metadata={"static": True})  # maximum number of slots of visual tokens

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


def new_cache(
    k: Float[Array, "layers B L Hk Dh"],
    v: Array,
    position: Int[Array, "B L P"],
    valid: Bool[Array, "B L"],
    free: int,
    **fields,
) -> Cache:
    """A cache that holds a prompt and has `free` more slots; `fields` are further fields of `Cache`."""
    furthest = jnp.max(jnp.where(valid[..., None], position, -1), (1, 2))
    used = jnp.asarray(k.shape[2], jnp.int32)
    fields = {"visual": jnp.zeros_like(valid), "next": furthest + 1, "used": used} | fields
    return with_free_slots(Cache(k=k, v=v, position=position, valid=valid, **fields), free)


def with_free_slots(cache: Cache, free: int) -> Cache:
    """The cache with `free` slots appended."""
    rows = {axis: [(0, 0)] * axis + [(0, free)] for axis in (1, 2)}

    def padded(a: Array | None, axis: int) -> Array | None:
        return None if a is None else jnp.pad(a, rows[axis] + [(0, 0)] * (a.ndim - axis - 1))

    return _over_slots(padded, cache)


def drop(cache: Cache, slots: Bool[Array, "B S"]) -> Cache:
    """The cache with these slots masked from now on."""
    return dataclasses.replace(cache, valid=cache.valid & ~slots)


def compact(cache: Cache, slots: int) -> Cache:
    """The cache with its valid slots first, cut to `slots` slots; what does not fit is lost.

    Only for a cache without free slots, as after the prompt.
    """
    index = jnp.argsort(~cache.valid, 1, stable=True)[:, :slots].astype(jnp.int32)

    def taken(a: Array | None, axis: int) -> Array | None:
        if a is None:
            return None
        return kernels.gather(a, index) if axis == 1 else jax.vmap(lambda layer: kernels.gather(layer, index))(a)

    cache = _over_slots(taken, cache)
    return dataclasses.replace(cache, used=jnp.asarray(index.shape[1], jnp.int32))


def take_per_head(cache: Cache, index: Int[Array, "layers B Hk K"]) -> Cache:
    """The cache in which each KV head of each layer keeps its own slots, in the order of `index`.

    All heads of a row must keep the same number of real slots, in front. Per-slot records (which are visual, their
    positions) are discarded, since they differ between heads. Only for a cache without free slots, as after the
    prompt. Raises UserError where slots have a bias or marks, which heads share.
    """
    if cache.bias is not None or cache.marks:
        raise UserError("heads cannot keep different slots together with proportional attention or an attention rule.")

    def taken(a: Array) -> Array:
        rows = jnp.moveaxis(a, 3, 2)  # [layers,B,Hk,S,Dh]
        return jnp.moveaxis(jnp.take_along_axis(rows, index[..., None], 3), 2, 3)

    real = jnp.take_along_axis(cache.valid[:, None], index[0], 2)[:, 0]
    slots = index.shape[-1]
    return dataclasses.replace(
        cache,
        k=taken(cache.k),
        v=taken(cache.v),
        position=cache.position[:, :slots],
        valid=real,
        visual=jnp.zeros_like(real),
        attention=None if cache.attention is None else cache.attention[..., :slots] * 0,
        visuals=0,
        used=jnp.asarray(slots, jnp.int32),
    )


def _over_slots(f, cache: Cache) -> Cache:
    """`f(array, axis of the slots)` over everything that a cache stores per slot."""
    axes = {"k": 2, "v": 2, "attention": 2, "position": 1, "valid": 1, "visual": 1, "bias": 1}
    changes = {name: f(getattr(cache, name), axis) for name, axis in axes.items()}
    return dataclasses.replace(cache, **changes, marks={name: f(mark, 2) for name, mark in cache.marks.items()})
