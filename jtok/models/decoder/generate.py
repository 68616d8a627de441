"""Generation: a prompt's state, blocks of tokens decoded in one program, and a stream of blocks.

Rows of a batch finish independently: after its stop token a row gives -1, and what is computed in its place is invalid
in the cache. The stop token itself is written, as it is part of the conversation that a second question continues.
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

from jtok.cache import Cache
from jtok.errors import UserError
from jtok.models.decoder.append import Caches, append, free_slots
from jtok.models.decoder.decoder import Decoder
from jtok.models.decoder.sampling import Sampling, sample
from jtok.plan import Plan
from jtok.slots import AttentionRule, CachePolicy, CacheStep


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stream:
    """Caches of a token stream, and the logits of its next token."""

    caches: Caches
    logits: Float[Array, "B V"]  # float32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """State of decoding: caches, and the logits of the next token."""

    caches: Caches
    logits: Float[Array, "B V"]  # float32
    done: Bool[Array, " B"]  # the row has given a stop token
    keys: Array  # [B], one PRNG key a row
    second: Stream | None = None  # of a decoding rule that contrasts two streams


def answering(plan: Plan) -> Plan:
    """The parts of a plan that act during decoding."""
    return Plan(attention=plan.attention, cache=plan.cache, decoding=plan.decoding)


@functools.partial(jax.jit, static_argnames=("graphdef", "block", "stops", "sampling"), donate_argnames="state")
def decode_block(
    graphdef: Any,
    params: Any,
    state: State,
    steps: int | Array,
    block: int,
    stops: tuple[int, ...],
    sampling: Sampling,
    plan: Plan = Plan(),  # noqa: B008  (frozen)
) -> tuple[Int[Array, "B block"], State]:
    """Up to `steps` (at most `block`) tokens for every row; ends early when all rows are done. -1 = nothing.

    graphdef, params: of the `Decoder`. The caches must have `steps` free slots. plan: its attention and decoding rules
    hold, and its cache policy changes the caches after the block, in rows that were not done before it.
    """
    decoder: Decoder = nnx.merge(graphdef, nnx.State(params))
    stop_ids = jnp.asarray(stops or (-1,), jnp.int32)

    def going(carry):
        i, _, state = carry
        return (i < steps) & ~jnp.all(state.done)

    def step(carry):
        i, out, state = carry
        keys = jax.vmap(lambda key: jax.random.split(key, 2))(state.keys)
        token = sample(_next_logits(plan, state), keys[:, 0], sampling)
        out = lax.dynamic_update_slice(out, jnp.where(state.done, -1, token)[:, None], (0, i))
        x, valid = decoder.embed(token[:, None]), ~state.done[:, None]
        done = state.done | jnp.any(token[:, None] == stop_ids, 1)
        after = _append(decoder, Stream(state.caches, state.logits), x, valid, plan.attention)
        second = None if state.second is None else _append(decoder, state.second, x, valid, plan.attention)
        return i + 1, out, State(after.caches, after.logits, done, keys[:, 1], second)

    out = jnp.full((state.logits.shape[0], block), -1, jnp.int32)
    _, out, after = lax.while_loop(going, step, (jnp.asarray(0, jnp.int32), out, state))
    if plan.cache is None:
        return out, after
    return out, _kept(plan.cache, after, ~state.done, decoder.config.depth)


def _next_logits(plan: Plan, state: State) -> Float[Array, "B V"]:
    if plan.decoding is None:
        return state.logits
    return plan.decoding(state.logits, None if state.second is None else state.second.logits)


def _append(decoder: Decoder, stream: Stream, x: Array, valid: Array, rule: AttentionRule | None) -> Stream:
    """A stream after one more embedded token per row."""
    x, caches = append(decoder, stream.caches, x, valid, rule)
    return Stream(caches, decoder.logits(x)[:, 0])


def _kept(policy: CachePolicy, state: State, active: Bool[Array, " B"], depth: int) -> State:
    """The state after the cache policy has been applied; rows that are not active keep their slots."""

    def changed(caches: Caches) -> Caches:
        layer, new = 0, []
        for cache in caches:
            after: Cache = policy(cache, CacheStep(False, layer, depth))
            new.append(dataclasses.replace(after, valid=cache.valid & (after.valid | ~active[:, None])))
            layer += cache.layers
        return tuple(new)

    second = state.second
    second = None if second is None else dataclasses.replace(second, caches=changed(second.caches))
    return dataclasses.replace(state, caches=changed(state.caches), second=second)


@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="state")
def read_text(
    graphdef: Any,
    params: Any,
    state: State,
    ids: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    plan: Plan = Plan(),  # noqa: B008  (frozen)
) -> State:
    """Appends text, such as a second question, to what was read (and reduced). Padding follows the text."""
    decoder: Decoder = nnx.merge(graphdef, nnx.State(params))
    embedded = decoder.embed(ids)

    def read(stream: Stream) -> Stream:
        x, caches = append(decoder, stream.caches, embedded, valid, plan.attention)
        last = jnp.maximum(valid.sum(1, dtype=jnp.int32) - 1, 0)
        new = decoder.logits(jnp.take_along_axis(x, last[:, None, None], 1))[:, 0]
        return Stream(caches, jnp.where(valid.any(1, keepdims=True), new, stream.logits))

    after = read(Stream(state.caches, state.logits))
    second = None if state.second is None else read(state.second)
    return State(after.caches, after.logits, state.done & ~valid.any(1), state.keys, second)


def stream(
    graphdef: Any,
    params: Any,
    state: State,
    tokens: int,
    *,
    stops: tuple[int, ...] = (),
    sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    block: int = 8,
    plan: Plan = Plan(),  # noqa: B008  (frozen)
) -> Iterator[tuple[np.ndarray, State]]:
    """Yields (ids [B, up to `block`], state so far) until `tokens` tokens are out or all rows are done; -1 = nothing.

    The given state is consumed: continue with the one yielded last. Raises UserError where too few slots are free.
    """
    free = free_slots(state.caches)
    if tokens > free:
        raise UserError(f"{tokens} tokens are asked for, the cache has {free} free slots: raise max_new_tokens.")
    while tokens > 0 and not bool(np.all(state.done)):
        steps = min(block, tokens)
        out, state = decode_block(graphdef, params, state, steps, block, stops, sampling, plan)
        tokens -= steps
        yield np.asarray(out)[:, :steps], state
