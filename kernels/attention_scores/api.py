"""`attention_scores`: softmax attention that also returns the attention each key received."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int

from jtok.errors import UserError
from jtok.kernels.attention_scores import gpu, reference, tpu
from jtok.kernels.attention_scores.arguments import check_arrays, key_bias, row_index, weights_of_rows
from jtok.kernels.attention_scores.tiles import CPU_BACKWARD, CPU_FORWARD, DEVICE
from jtok.kernels.platform import Implementation, by_rows, check_implementation, dispatch
from jtok.kernels.transforms import linear

FEW_ROWS = 32  # up to here the scored rows' probabilities are simply computed; beyond, only their weighted sum is kept


class AttentionOutput(NamedTuple):
    """What `attention_scores` returns; a field that was not asked for is None."""

    out: Float[Array, "B N H D"]
    received: Float32[Array, "B M"] | Float32[Array, "B H M"] | None
    probabilities: Float32[Array, "B H R M"] | None
    lse: Float32[Array, "B H N"] | None


def attention_scores(
    q: Float[Array, "B N H D"],
    k: Float[Array, "B M Hk D"],
    v: Float[Array, "B M Hk D"],
    *,
    bias: Float[Array, "B M"] | None = None,
    valid: Bool[Array, "B M"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    rows: None | str | int | Sequence[int] | Int[Array, "R"] | Int[Array, "B R"] = None,
    row_weights: Float[Array, "B R"] | None = None,
    per_head: bool = False,
    return_probabilities: bool = False,
    return_lse: bool = False,
    implementation: Implementation = None,
) -> AttentionOutput:
    """softmax(scale q k^T + bias) v, with scores of the keys, and without an N x M array in memory.

    q [B,N,H,D]; k, v [B,M,Hk,D] with H a multiple of Hk (grouped-query attention: query head h reads key head
    h // (H / Hk)); all of one float dtype. The softmax and the sums are float32; `out` has q's dtype.

    bias: added to every query's score of a key before the softmax (log of a token's size: proportional attention,
        "Token Merging", arXiv 2210.09461). Minus infinity masks the key.
    valid: which keys exist. A query row that sees no key gives zeros in `out` and `received`, and lse = -1e30.
    causal: query n sees key m where m <= n + M - N: the last query sees everything, as when decoding with a cache.
    scale: 1/sqrt(D) if None.
    rows: which query rows score the keys. None: none, `received` is None. "all": every row. An int, a sequence of ints
        or an integer array [R] or [B,R]: those rows (negative ones count from the end); the extra cost is those rows.
    row_weights: [B,R], one weight for each scored row ([B,N] for "all"); 1 if None. A row of padding wants weight 0.
    per_head: keep the heads of `received` apart.
    return_probabilities: also the probabilities of the scored rows, [B,H,R,M]; with rows="all" that is the whole array.
    return_lse: also the log-sum-exp of every row's scores, [B,H,N] float32.

    `received` [B,M] is the mean over heads of the sum over the scored rows r of row_weights[b,r] times the attention
    probability that row r gives to key m; with per_head=True it is [B,H,M], without the mean. For the *mean* over rows
    pass weights 1/R.

    Differentiable in q, k, v, bias and row_weights, through every output. Raises `UserError` for shapes,
    dtypes or rows that do not fit, and for implementation="pallas" where the program is built for a platform without
    the kernel. Method: "FlashAttention", arXiv 2205.14135, with column sums from the log-sum-exp.
    """
    check_implementation("attention_scores", implementation)
    check_arrays(q, k, v, bias, valid)
    if rows is None and (row_weights is not None or per_head or return_probabilities):
        raise UserError(
            "attention_scores: row_weights, per_head and return_probabilities describe scored rows, and rows is None;"
            " pass rows='all' or the query rows to score."
        )
    options = _Options(bool(causal), float(q.shape[-1] ** -0.5 if scale is None else scale), implementation)
    keys = key_bias(bias, valid)
    everything = isinstance(rows, str)
    if everything and rows != "all":
        raise UserError(f"attention_scores: rows={rows!r} is not known; pass None, 'all' or the numbers of query rows.")
    index = None if rows is None else row_index(jnp.arange(q.shape[1]) if everything else rows, *q.shape[:2])
    weights = None if index is None else weights_of_rows(row_weights, index.shape)

    score = functools.partial(_score, options, everything, return_probabilities)
    out, received, probabilities, lse = by_rows(score, q, k, v, keys, index, weights)
    if received is not None and not per_head:
        received = jnp.mean(received, 1)
    return AttentionOutput(out, received, probabilities if return_probabilities else None, lse if return_lse else None)


def _score(options, everything: bool, return_probabilities: bool, q, k, v, keys, index, weights):
    """`out`, `received` by head, `probabilities` and `lse`, with the scored rows `index` and their weights [B,R]."""
    single = index is not None and q.shape[1] == index.shape[1] == 1  # then what is received is the probabilities
    summed_inside = single or everything and not return_probabilities
    inside = jnp.ones_like(weights) if single else weights if summed_inside else None
    out, lse, received = _attention(options, q, k, v, keys, inside)
    probabilities = None
    if single:
        probabilities, received = received[:, :, None], received * weights[:, None]
    elif index is not None and not summed_inside:
        picked = jnp.take_along_axis(q, index[:, :, None, None], 1)
        positions = index + (k.shape[1] - q.shape[1]) if options.causal else None
        if return_probabilities or index.shape[1] <= FEW_ROWS:
            probabilities = reference.row_probabilities(picked, k, keys, positions, scale=options.scale)
            received = jnp.einsum("bhrm,br->bhm", probabilities, weights)
        else:
            their_lse = jnp.take_along_axis(lse, index[:, None], 2)
            received = _column_sums(options, picked, k, keys, positions, weights, their_lse)
    return out, received, probabilities, lse


class _Options(NamedTuple):
    causal: bool
    scale: float
    implementation: Implementation


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attention(options, *args):
    static = {"causal": options.causal, "scale": options.scale}
    return _dispatch(options, "attend", static, _by_budget(reference.attend, CPU_FORWARD, static), args)


@_attention.defjvp
def _attention_jvp(options, args, tangents):
    static = {"causal": options.causal, "scale": options.scale}
    forward, backward = (
        _by_budget(function, CPU_BACKWARD, static) for function in (reference.attend_forward, reference.attend_backward)
    )
    outputs = _attention(options, *args)
    known = (*args, *outputs[:2])
    return outputs, linear(lambda x, t: forward(*x, t), lambda x, t: backward(*x, t), known, tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _column_sums(options, *args):
    static = {"scale": options.scale}
    return _dispatch(options, "column_sums", static, _by_budget(reference.column_sums, CPU_FORWARD, static), args)


@_column_sums.defjvp
def _column_sums_jvp(options, args, tangents):
    static = {"scale": options.scale}
    forward, backward = (
        _by_budget(function, CPU_BACKWARD, static)
        for function in (reference.column_sums_forward, reference.column_sums_backward)
    )
    floats = (*tangents[:3], *tangents[4:])  # positions have none
    slopes = linear(lambda x, t: forward(*x, t), lambda x, t: backward(*x, t), args, floats)
    return _column_sums(options, *args), slopes


def _dispatch(options, name, static, xla, args):
    forced = options.implementation == "pallas"
    kernels = {
        platform: functools.partial(getattr(backend, name), **static) if backend.takes(args[0], forced) else None
        for platform, backend in (("tpu", tpu), ("gpu", gpu))
    }
    return dispatch("attention_scores", *args, xla=xla, **kernels, implementation=options.implementation)


def _by_budget(function, cpu_budget, static):
    """The plain path with tiles for the caches of a CPU or for an accelerator, by the platform lowered for."""
    cpu, device = (functools.partial(function, budget=budget, **static) for budget in (cpu_budget, DEVICE))
    return functools.partial(lax.platform_dependent, cpu=cpu, default=device)
