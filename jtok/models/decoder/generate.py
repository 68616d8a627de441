"""Generation: a prompt's state, blocks of tokens decoded in one program, and a stream of blocks.

Rows of a batch finish on their own: after its stop token a row gives -1, and what runs on in its place is invalid to
the cache. The stop token itself is written, as it is part of the conversation that a second question continues.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError
from jtok.models.decoder.cache import Cache, Caches, append, free_slots
from jtok.models.decoder.cache_policy import CachePolicy
from jtok.models.decoder.decoder import Decoder
from jtok.models.decoder.sampling import Sampling, sample


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """A conversation so far: what was read, and the logits of what comes next."""

    caches: Caches
    logits: Float[Array, "B V"]  # float32
    done: Bool[Array, " B"]  # the row has given a stop token
    keys: Array  # [B], one PRNG key a row


@functools.partial(
    jax.jit, static_argnames=("graphdef", "block", "stops", "sampling", "policy"), donate_argnames="state"
)
def decode_block(
    graphdef: Any,
    params: Any,
    state: State,
    steps: int | Array,
    block: int,
    stops: tuple[int, ...],
    sampling: Sampling,
    policy: CachePolicy | None = None,
) -> tuple[Int[Array, "B block"], State]:
    """Up to `steps` (at most `block`) tokens for every row; ends early when all rows are done. -1 = nothing.

    graphdef, params: of the `Decoder`. The caches must have `steps` free slots. policy: changes the caches
    behind the block, in rows that were not done before it.
    """
    decoder: Decoder = nnx.merge(graphdef, nnx.State(params))
    stop_ids = jnp.asarray(stops or (-1,), jnp.int32)

    def going(carry):
        i, _, state = carry
        return (i < steps) & ~jnp.all(state.done)

    def step(carry):
        i, out, state = carry
        keys = jax.vmap(lambda key: jax.random.split(key, 2))(state.keys)
        token = sample(state.logits, keys[:, 0], sampling)
        out = lax.dynamic_update_slice(out, jnp.where(state.done, -1, token)[:, None], (0, i))
        x, caches = append(decoder, state.caches, decoder.embed(token[:, None]), ~state.done[:, None])
        done = state.done | jnp.any(token[:, None] == stop_ids, 1)
        return i + 1, out, State(caches, decoder.logits(x)[:, 0], done, keys[:, 1])

    out = jnp.full((state.logits.shape[0], block), -1, jnp.int32)
    _, out, after = lax.while_loop(going, step, (jnp.asarray(0, jnp.int32), out, state))
    if policy is None:
        return out, after
    caches = tuple(_changed(policy, cache, ~state.done) for cache in after.caches)
    return out, dataclasses.replace(after, caches=caches)


def _changed(policy: CachePolicy, cache: Cache, active: Bool[Array, " B"]) -> Cache:
    """The cache after a policy has seen it; rows that are not active keep the slots that they had."""
    new = policy(cache, first=False)
    return dataclasses.replace(new, valid=cache.valid & (new.valid | ~active[:, None]))


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="state")
def read_text(graphdef: Any, params: Any, state: State, ids: Int[Array, "B T"], valid: Bool[Array, "B T"]) -> State:
    """The conversation with more text: a second question over what was read (and reduced). Padding follows the text."""
    decoder: Decoder = nnx.merge(graphdef, nnx.State(params))
    x, caches = append(decoder, state.caches, decoder.embed(ids), valid)
    last = jnp.maximum(valid.sum(1, dtype=jnp.int32) - 1, 0)
    new = decoder.logits(jnp.take_along_axis(x, last[:, None, None], 1))[:, 0]
    logits = jnp.where(valid.any(1, keepdims=True), new, state.logits)
    return State(caches, logits, state.done & ~valid.any(1), state.keys)


def stream(
    graphdef: Any,
    params: Any,
    state: State,
    tokens: int,
    *,
    stops: tuple[int, ...] = (),
    sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    block: int = 8,
    policy: CachePolicy | None = None,
) -> Iterator[tuple[np.ndarray, State]]:
    """Yields (ids [B, up to `block`], state so far) until `tokens` are given or all rows are done; -1 = nothing.

    The state handed in is used up: go on with the one yielded last. Raises UserError where too few slots are free.
    """
    free = free_slots(state.caches)
    if tokens > free:
        raise UserError(f"{tokens} tokens are asked for, the cache has {free} free slots: raise max_new_tokens.")
    while tokens > 0 and not bool(np.all(state.done)):
        steps = min(block, tokens)
        out, state = decode_block(graphdef, params, state, steps, block, stops, sampling, policy)
        tokens -= steps
        yield np.asarray(out)[:, :steps], state
