"""`max_min_select`: greedy farthest-point selection, the loop of the diversity pruners."""

from functools import partial
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError
from jtok.kernels.max_min_select import gpu, reference, tpu
from jtok.kernels.numerics import first_argmax, is_concrete
from jtok.kernels.platform import Implementation, by_rows, check_implementation, dispatch

METRICS = ("cosine", "l2", "l1")


def max_min_select(
    x: Float[Array, "b n d"],
    k: int,
    *,
    metric: Literal["cosine", "l2", "l1"] = "cosine",
    weight: Float[Array, "b n"] | None = None,
    bonus: Float[Array, "b n"] | None = None,
    start: Int[Array, "b"] | int | Literal["first", "weight"] | None = None,
    chosen: Bool[Array, "b n"] | None = None,
    valid: Bool[Array, "b n"] | None = None,
    implementation: Implementation = None,
) -> Int[Array, "b k"]:
    """Pick k of N tokens, each time the one farthest from all picked so far (greedy k-center, max-min diversity).

    Every step takes the token that maximises `weight * d + bonus`, where d is its distance to the nearest token of
    the chosen set. The greedy 2-approximation of Gonzalez (1985); DivPrune, ToDRE, BTP, ZOO-Prune, GreedyPrune.

    Args:
      x: [B, N, D], any float dtype; distances are float32.
      k: number of tokens to pick, at most N.
      metric: "cosine" (1 - cosine similarity), "l2" (squared Euclidean), "l1" (Manhattan, e.g. on grid positions).
      weight: float [B, N] >= 0, saliency that multiplies the distance; None for ones.
      bonus: float [B, N], saliency that is added; None for zeros. MMR with lam is bonus = lam / (1 - lam) * saliency.
      start: the first pick. None: the rule above, d being the distance to the nearest other token (DivPrune, BTP).
        "first": token 0 (the lowest valid one). "weight": the largest weight (ZOO-Prune). Int or int [B]: that token.
      chosen: bool [B, N], tokens that are already in the set. They are not picked again, not returned, and take the
        place of `start` in the images that have any.
      valid: bool [B, N], tokens that may be picked; None for all. The others count for nothing.
      implementation: None (the fastest of the platform), "xla" or "pallas".

    Returns:
      int32 [B, k] in the order picked; the lowest index of equals; -1 once an image has no token left. No gradient.

    Raises:
      UserError: shapes, dtypes, k, metric or start that do not fit, or a `valid` known to be empty in some image.
    """
    check_implementation("max_min_select", implementation)
    _check(x, k, metric, weight, bonus, start, chosen, valid)
    b, n, _ = x.shape
    valid = jnp.ones((b, n), bool) if valid is None else valid
    first = _first(start, weight, valid)
    chosen = None if chosen is None else chosen & valid
    weight, bonus = (None if w is None else w.astype(jnp.float32) for w in (weight, bonus))
    args = lax.stop_gradient((x, weight, bonus, first, chosen, valid))
    static = {"k": k, "metric": metric}
    return by_rows(partial(_select, static, implementation), *args)


def _select(static, implementation, *args):
    return dispatch(
        "max_min_select", *args,
        xla=partial(reference.select, **static),
        tpu=partial(tpu.select, **static) if tpu.takes(args[0], static["metric"]) else None,
        gpu=partial(gpu.select, **static) if gpu.takes(args[0]) else None,
        implementation=implementation,
    )  # fmt: skip


def _first(start, weight, valid):
    """The first pick of every image [B], None for the rule of the most isolated token."""
    b = valid.shape[0]
    if start is None:
        return None
    if isinstance(start, str):
        score = jnp.zeros(valid.shape) if start == "first" else weight.astype(jnp.float32)
        return first_argmax(jnp.where(valid, score, -jnp.inf))
    return jnp.broadcast_to(jnp.asarray(start, jnp.int32), (b,))


def _check(x, k, metric, weight, bonus, start, chosen, valid) -> None:
    name = "max_min_select"
    if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"{name}: x is {x.dtype} {x.shape}; pass floats [B, N, D].")
    b, n, _ = x.shape
    if not 1 <= k <= n:
        raise UserError(f"{name}: k={k} of {n} tokens cannot be picked; pass 1 <= k <= {n}.")
    if metric not in METRICS:
        raise UserError(f"{name}: metric={metric!r} is not known; pass 'cosine', 'l2' or 'l1'.")
    for word, array, kind in (("weight", weight, jnp.floating), ("bonus", bonus, jnp.floating),
                              ("chosen", chosen, jnp.bool_), ("valid", valid, jnp.bool_)):  # fmt: skip
        if array is not None and (array.shape != (b, n) or not jnp.issubdtype(array.dtype, kind)):
            wanted = "bool" if kind is jnp.bool_ else "floats"
            raise UserError(f"{name}: {word} is {array.dtype} {array.shape}; pass {wanted} of shape {(b, n)}.")
    if isinstance(start, str) and start not in ("first", "weight"):
        raise UserError(f"{name}: start={start!r} is not known; pass None, 'first', 'weight' or token indices.")
    if isinstance(start, str) and start == "weight" and weight is None:
        raise UserError(f"{name}: start='weight' needs a weight; pass weight [B, N].")
    if start is not None and not isinstance(start, str) and is_concrete(start):
        given = np.asarray(start)
        if given.shape not in ((), (b,)) or given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= n:
            raise UserError(f"{name}: start={start!r} does not name tokens; pass indices in [0, {n}), one or [{b}].")
    if valid is not None and is_concrete(valid) and not np.asarray(valid).any(-1).all():
        raise UserError(f"{name}: valid leaves some image without a token; every row needs at least one True.")
