"""`nearest` in plain jnp: the definition, and the path of every platform without a kernel."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok.kernels.numerics import LARGE_MATMUL, first_argmax, inverse_norm

# Scores held at once (16 MiB of float32): more than this and the rows are taken in chunks, one image at a time.
CHUNK = 1 << 22


def columns(
    b: Float[Array, "h m d"], mask: Bool[Array, "g m"] | None, metric: str
) -> tuple[Float[Array, "g m"], Float[Array, "g m"]]:
    """Per candidate, what turns a dot product into a score to maximise: `a.b * scale + offset`.

    The factor of `a` alone (its norm) cannot change which candidate wins and is left out. A candidate that is masked
    has offset -inf.
    """
    b = b.astype(jnp.float32)
    scale = inverse_norm(b) if metric == "cosine" else jnp.full(b.shape[:2], 2.0 if metric == "l2" else 1.0)
    offset = -jnp.sum(b * b, -1) if metric == "l2" else jnp.zeros(b.shape[:2])
    if mask is not None:
        offset = jnp.where(mask, offset, -jnp.inf)
    return jnp.broadcast_to(scale, offset.shape), offset


def best(
    a: Float[Array, "g n d"],
    b: Float[Array, "h m d"],
    scale: Float[Array, "g m"],
    offset: Float[Array, "g m"],
    mask: Bool[Array, "g n m"] | None,
    k: int,
) -> tuple[Float[Array, "g n k"], Int[Array, "g n k"]]:
    """The k best scores of every row and their candidates, with all scores held in memory."""
    equation = "gnd,md->gnm" if b.shape[0] == 1 else "gnd,gmd->gnm"
    b = b[0] if b.shape[0] == 1 else b
    dots = jnp.einsum(equation, a.astype(jnp.float32), b.astype(jnp.float32), precision=lax.Precision.HIGHEST)
    score = dots * scale[:, None] + offset[:, None]
    if mask is not None:
        score = jnp.where(mask, score, -jnp.inf)
    if k > 1:
        return tuple(lax.top_k(score, k))
    index = first_argmax(score)[..., None]
    return score.max(-1, keepdims=True), index


def search(
    a: Float[Array, "g n d"],
    b: Float[Array, "h m d"],
    scale: Float[Array, "g m"],
    offset: Float[Array, "g m"],
    mask: Bool[Array, "g n m"] | None,
    *,
    k: int = 1,
) -> tuple[Float[Array, "g n k"], Int[Array, "g n k"]]:
    """As `best`, in bounded memory: where the scores are many, image by image and a chunk of rows at a time; image by
    image also where a single image is enough work."""
    g, n, d = a.shape
    m = b.shape[1]
    if g * n * m <= CHUNK and (g == 1 or n * m * d < LARGE_MATMUL):
        return best(a, b, scale, offset, mask, k)
    rows = max(1, min(n, CHUNK // m))
    pad = -n % rows

    def image(i: Int[Array, ""]) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
        one = lambda x: lax.dynamic_index_in_dim(x, i, 0)  # noqa: E731
        candidates = b if b.shape[0] == 1 else one(b)
        parts = jnp.pad(one(a)[0], ((0, pad), (0, 0))).reshape(-1, 1, rows, a.shape[-1])
        masks = None if mask is None else jnp.pad(one(mask)[0], ((0, pad), (0, 0))).reshape(-1, 1, rows, m)
        of = lambda part: best(part[0], candidates, one(scale), one(offset), part[1], k)  # noqa: E731
        score, index = lax.map(of, (parts, masks))
        return score.reshape(-1, k)[:n], index.reshape(-1, k)[:n]

    return lax.map(image, jnp.arange(g))


def pair_value(
    a: Float[Array, "g n d"], b: Float[Array, "h m d"], index: Int[Array, "g n k"], metric: str
) -> Float[Array, "g n k"]:
    """The similarity (cosine, dot) or squared distance (l2) of every row and its chosen candidates, differentiable.

    One rank after the other, because the chosen candidates of all ranks take k times the memory of `a`; on a CPU also
    image by image, which keeps them in its cache (2.4 times faster at 8 x 577 x 1024, k = 5).
    """
    together = partial(_of_ranks, metric=metric)

    def by_image(a, b, index):
        if b.shape[0] == 1:
            return together(a, b, index)
        return lax.map(lambda one: together(*(x[None] for x in one))[0], (a, b, index))

    return lax.platform_dependent(a, b, index, cpu=by_image, default=together)


def _of_ranks(a, b, index, metric: str) -> Float[Array, "g n k"]:
    owner = 0 if b.shape[0] == 1 else jnp.arange(b.shape[0])[:, None]
    rows = a.astype(jnp.float32)

    def of_rank(index: Int[Array, "g n"]) -> Float[Array, "g n"]:
        chosen = lax.optimization_barrier(b[owner, index]).astype(jnp.float32)
        if metric == "l2":
            return jnp.sum(jnp.square(rows - chosen), -1)
        dots = jnp.sum(rows * chosen, -1)
        return dots * inverse_norm(rows) * inverse_norm(chosen) if metric == "cosine" else dots

    return jnp.moveaxis(lax.map(of_rank, jnp.moveaxis(index, -1, 0)), 0, -1)


@partial(jax.custom_jvp, nondiff_argnums=(4,))
def value(
    a: Float[Array, "g n d"],
    b: Float[Array, "h m d"],
    index: Int[Array, "g n k"],
    score: Float[Array, "g n k"],
    metric: str,
) -> Float[Array, "g n k"]:
    """As `pair_value`, from the score of the search where that is exact enough: fetching the rows of `b` can take
    longer than the search did. A squared distance is a small difference of large numbers and is taken afresh."""
    if metric == "l2":
        return pair_value(a, b, index, metric)
    return score * inverse_norm(a)[..., None] if metric == "cosine" else score


@value.defjvp
def _value_jvp(metric, primals, tangents):
    a, b, index, _ = primals
    _, slope = jax.jvp(lambda a, b: pair_value(a, b, index, metric), (a, b), tangents[:2])
    return value(*primals, metric), slope
