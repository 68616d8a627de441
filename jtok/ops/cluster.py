"""Groups of similar tokens: medoids, means, density peaks, agglomeration, and soft means on a grid.

Groups are found without gradients (they are integers); means are differentiable in the features. Padding (`valid`
False) joins no group and changes nothing; centres that would fall on padding, where an image has fewer real tokens than
groups, stay empty. Ties go to the lowest index.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
from jtok.ops import select

Linkage = Literal["average", "complete", "single"]
MedoidUpdate = Literal["official", "textbook"]


def lowest(cost: Float[Array, "..."], axis: int = -1) -> Int[Array, "..."]:
    """Index of the least cost along an axis; the first of equals.

    Two vectorised minima: on a CPU an argmin is not vectorised.
    """
    axis %= cost.ndim
    least = lax.optimization_barrier(cost.min(axis, keepdims=True))
    place = lax.broadcasted_iota(jnp.int32, cost.shape, axis)
    return jnp.where(cost == least, place, cost.shape[axis]).min(axis) % cost.shape[axis]


def squared_distances(a: Float[Array, "B N D"], b: Float[Array, "B M D"]) -> Float[Array, "B N M"]:
    """Squared Euclidean distances in float32, from one matrix product; rounding may leave them slightly negative."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    dots = jnp.einsum("bnd,bmd->bnm", a, b, precision=lax.Precision.HIGHEST)
    return (a * a).sum(-1)[:, :, None] + (b * b).sum(-1)[:, None] - 2 * dots


def distances(x: Float[Array, "B N D"]) -> Float[Array, "B N N"]:
    """Euclidean distances between all tokens, float32, exactly zero on the diagonal. No gradient."""
    x = lax.stop_gradient(x)
    squared = jnp.where(jnp.eye(x.shape[1], dtype=bool), 0, jnp.maximum(squared_distances(x, x), 0))
    # without the barrier XLA recomputes the matrix in every step of a loop that reads it
    return lax.optimization_barrier(jnp.sqrt(squared))


def cosine_distances(x: Float[Array, "B N D"]) -> Float[Array, "B N N"]:
    """1 - cosine similarity between all tokens, float32. No gradient."""
    x = lax.stop_gradient(x).astype(jnp.float32)
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return lax.optimization_barrier(1 - jnp.einsum("bnd,bmd->bnm", x, x, precision=lax.Precision.HIGHEST))


def nearest_centre(
    distance: Float[Array, "B N N"],
    centre: Int[Array, "B K"],
    valid: Bool[Array, "B N"] | None = None,
    groups: Int[Array, " B"] | None = None,
) -> Int[Array, "B N"]:
    """Which of the tokens `centre` is nearest to each token (the first of equals); never one that is padding.

    groups: number of the K centres that a row uses.
    """
    rows = kernels.gather(distance, centre)  # symmetric: rows are contiguous, columns are not
    if groups is not None:
        rows = jnp.where(jnp.arange(centre.shape[1])[:, None] < groups[:, None, None], rows, jnp.inf)
    if valid is not None:
        rows = jnp.where(jnp.take_along_axis(valid, centre, 1)[..., None], rows, jnp.inf)
    return lowest(rows, 1)


def k_medoids(
    distance: Float[Array, "B N N"],
    start: Int[Array, "B K"],
    iterations: int,
    *,
    weight: Float[Array, "B N"] | None = None,
    valid: Bool[Array, "B N"] | None = None,
    update: MedoidUpdate = "official",
) -> tuple[Int[Array, "B K"], Int[Array, "B N"]]:
    """(medoids, group of every token). Rounds of assigning all tokens, then moving all medoids.

    update: `textbook` moves to the member m of least sum over members j of weight_j * d_mj, and leaves the medoid of an
    empty group. `official`, the released code of arXiv:2308.04657, moves to the member of least weight_m * d_m, where
    d_m sums over *all* tokens, and sends the medoid of an empty group to the first token.
    """
    b, n, _ = distance.shape
    weight = jnp.ones((b, n)) if weight is None else lax.stop_gradient(weight).astype(jnp.float32)
    real = jnp.ones((b, n), bool) if valid is None else valid
    everyone = weight * jnp.where(real[:, None], distance, 0).sum(-1)
    group = jnp.arange(start.shape[1])[:, None]
    far = jnp.finfo(jnp.float32).max  # finite: a real token of another group still comes before padding

    def move(_, medoid):
        assign = nearest_centre(distance, medoid, valid)
        cost = everyone
        if update == "textbook":
            among = (assign[:, :, None] == assign[:, None]) & real[:, None]
            cost = jnp.where(among, distance * weight[:, None], 0).sum(-1)
        member = (assign[:, None] == group) & real[:, None]
        best = lowest(jnp.where(member, cost[:, None], jnp.where(real[:, None], far, jnp.inf)))
        return jnp.where(member.any(-1), best, medoid) if update == "textbook" else best

    medoid = lax.fori_loop(0, iterations, move, start.astype(jnp.int32))
    return medoid, nearest_centre(distance, medoid, valid)


def spread_by_maximum(
    distance: Float[Array, "B N N"], k: int, first: Int[Array, "B"], valid: Bool[Array, "B N"] | None = None
) -> Int[Array, "B k"]:
    """k tokens from `first` on, each the one whose *largest* distance to those chosen is largest.

    The start of the released K-Medoids code (arXiv:2308.04657); farthest-first would take the smallest distance.
    """
    b, n, _ = distance.shape
    rows = jnp.arange(b)

    def step(t, state):
        reach, chosen, picks = state
        reach = jnp.maximum(reach, distance[rows, picks[:, t - 1]])
        chosen = chosen.at[rows, picks[:, t - 1]].set(True)
        gain = jnp.where(chosen, 0, reach)
        gain = gain if valid is None else jnp.where(valid, gain, -jnp.inf)
        return reach, chosen, picks.at[:, t].set(lowest(-gain))

    picks = jnp.zeros((b, k), jnp.int32).at[:, 0].set(first)
    return lax.fori_loop(1, k, step, (jnp.zeros((b, n)), jnp.zeros((b, n), bool), picks))[2]


def k_means(
    x: Float[Array, "B N D"],
    start: Int[Array, "B K"],
    iterations: int,
    *,
    weight: Float[Array, "B N"] | None = None,
    valid: Bool[Array, "B N"] | None = None,
) -> tuple[Float[Array, "B K D"], Int[Array, "B N"]]:
    """(centres in float32, group of every token by the last centres), by Lloyd's rounds from the tokens `start`.

    Weights enter the means, not the assignment. The centre of a group without weight is unchanged.
    """
    x = x.astype(jnp.float32)
    num = start.shape[1]
    candidates = None if valid is None else jnp.take_along_axis(valid, start, 1)

    def groups(centres):
        return kernels.nearest(x, centres, metric="l2", mask=candidates)[1]

    def move(_, centres):
        assign = groups(centres)
        assign = assign if valid is None else jnp.where(valid, assign, -1)
        mean, mass = kernels.merge(x, assign, num, weight=weight, mode="mean")
        return jnp.where(mass[..., None] > 0, mean, centres)

    centres = lax.fori_loop(0, iterations, move, kernels.gather(x, start))
    return centres, groups(centres)


def density_peaks(
    x: Float[Array, "B N D"],
    num: int,
    neighbours: int = 5,
    *,
    noise: Float[Array, "B N"] | None = None,
    valid: Bool[Array, "B N"] | None = None,
    groups: Int[Array, " B"] | None = None,
) -> tuple[Int[Array, "B K"], Int[Array, "B N"]]:
    """(centres by falling score, group of every token) of DPC-KNN, as in TCFormer (arXiv:2204.08680).

    A token's density comes from its `neighbours` nearest tokens, itself included; its score is the density times the
    distance to the nearest denser token. noise: uniform draws that break ties of density, scaled to 1e-6; without them
    the lower index counts as the denser. groups: number of the `num` groups that a row uses, where that depends on the
    image, and with it of the `neighbours`.
    """
    b, n, c = x.shape
    order = jnp.arange(n)
    distance = distances(x) / c**0.5
    real = None if valid is None else valid[:, None] & valid[:, :, None]
    top = (distance if real is None else jnp.where(real, distance, 0)).max((1, 2))[:, None]
    if valid is not None:
        distance = lax.optimization_barrier(jnp.where(valid[:, None], distance, top[..., None] + 1))
    near = -lax.top_k(-distance, min(neighbours, n))[0]
    # logarithms rank the same, and do not vanish where features are large
    density = -_mean_of_first(near * near, groups)
    density = density if noise is None else jnp.log(jnp.exp(density) + 1e-6 * noise)
    density = density if valid is None else jnp.where(valid, density, -jnp.inf)
    denser = density[:, None] > density[:, :, None]
    if noise is None:
        denser |= (density[:, None] == density[:, :, None]) & (order < order[:, None])
    gap = jnp.minimum(jnp.where(denser, distance, jnp.inf).min(-1), top)
    centre = select.top_k(jnp.log(gap) + density, num, valid=valid, order="score")
    assign = nearest_centre(distance, centre, valid, groups)
    target = centre if valid is None else jnp.where(jnp.take_along_axis(valid, centre, 1), centre, n)
    target = target if groups is None else jnp.where(jnp.arange(num) < groups[:, None], target, n)
    # twins at distance zero of two centres would otherwise both follow the first
    return centre, assign.at[jnp.arange(b)[:, None], target].set(jnp.arange(num), mode="drop")


def _mean_of_first(x: Float[Array, "B N K"], count: Int[Array, " B"] | None) -> Float[Array, "B N"]:
    """Mean over the last axis, or over its first `count` (at most K, at least one)."""
    if count is None:
        return x.mean(-1)
    count = jnp.clip(count, 1, x.shape[-1])[:, None]
    return jnp.where(jnp.arange(x.shape[-1]) < count[..., None], x, 0).sum(-1) / count


def agglomerate(
    distance: Float[Array, "B N N"], num: int, linkage: Linkage = "average", valid: Bool[Array, "B N"] | None = None
) -> Int[Array, "B N"]:
    """Groups 0..num-1, in order of their first members, after merging the nearest two groups until `num` are left.

    The distance between groups is the mean, largest or smallest over pairs of members (Lance-Williams updates). Every
    row keeps a lower bound of its distance to the nearest other group, which merging never lowers: a step takes the row
    of the least bound, and either finds that the bound has risen, or merges. A step costs O(N), not O(N^2).
    """
    b, n, _ = distance.shape
    rows, slots = jnp.arange(b), jnp.arange(n)
    alive = jnp.ones((b, n), bool) if valid is None else valid

    def unfinished(state):
        return (state[2].sum(-1) > num).any()

    def step(state):
        d, bound, alive, mass, root = state
        i = lowest(bound)
        row = jnp.where(alive & (slots != i[:, None]), d[rows, i], jnp.inf)
        least, j = row.min(-1), lowest(row)
        running = alive.sum(-1) > num
        merging = running & (least <= bound[rows, i])
        u, v = jnp.minimum(i, j), jnp.maximum(i, j)
        other = jnp.where(alive & (slots != j[:, None]), d[rows, j], jnp.inf)
        new = _link(row, other, mass[rows, i], mass[rows, j], linkage)
        new = jnp.where((slots == u[:, None]) | (slots == v[:, None]), jnp.inf, new)
        at_u, at_v = jnp.where(merging, u, n), jnp.where(merging, v, n)  # n: outside, written nowhere
        d = d.at[rows, at_u].set(new, mode="drop").at[rows, :, at_u].set(new, mode="drop")
        bound = bound.at[rows, jnp.where(running & ~merging, i, n)].set(least, mode="drop")
        bound = bound.at[rows, at_u].set(new.min(-1), mode="drop").at[rows, at_v].set(jnp.inf, mode="drop")
        mass = mass.at[rows, at_u].add(mass[rows, v], mode="drop")
        alive = alive.at[rows, at_v].set(False, mode="drop")
        return d, bound, alive, mass, jnp.where(root == at_v[:, None], u[:, None], root)

    apart = jnp.where((slots[:, None] != slots) & alive[:, None] & alive[:, :, None], distance, jnp.inf)
    apart = lax.stop_gradient(apart)
    start = apart, apart.min(-1), alive, jnp.ones((b, n)), jnp.broadcast_to(slots, (b, n))
    *_, alive, _, root = lax.while_loop(unfinished, step, start)
    return jnp.take_along_axis(jnp.cumsum(alive, -1) - 1, root, 1).astype(jnp.int32) % num


def _link(a: Array, b: Array, mass_a: Array, mass_b: Array, linkage: Linkage) -> Array:
    """Distances [B,N] to the union of two groups, given those to either (and their sizes [B])."""
    if linkage == "single":
        return jnp.minimum(a, b)
    if linkage == "complete":
        return jnp.maximum(a, b)
    mass_a, mass_b = mass_a[:, None], mass_b[:, None]
    return (mass_a * a + mass_b * b) / (mass_a + mass_b)


def pooling_matrix(size: int, cells: int) -> np.ndarray:
    """[cells, size] 1 where a place belongs to a cell of adaptive average pooling; cells may overlap."""
    cell, place = np.arange(cells)[:, None], np.arange(size)
    return ((place >= cell * size // cells) & (place < -(-(cell + 1) * size // cells))).astype(np.float32)


def adaptive_average_pool(
    x: Float[Array, "B N D"], grid: tuple[int, int], cells: tuple[int, int]
) -> Float[Array, "B K D"]:
    """Mean of each cell's patches, in raster order; cells overlap where the grid does not divide evenly."""
    rows, columns = (jnp.asarray(pooling_matrix(s, c)) for s, c in zip(grid, cells, strict=True))
    rows, columns = (m / m.sum(1, keepdims=True) for m in (rows, columns))
    pooled = jnp.einsum("hy,wx,byxd->bhwd", rows, columns, x.reshape(x.shape[0], *grid, -1))
    return pooled.reshape(x.shape[0], cells[0] * cells[1], -1)


def near_cells(grid: tuple[int, int], cells: tuple[int, int], neighbourhood: int) -> np.ndarray:
    """[cells, patches] True where a patch's home cell is at most neighbourhood // 2 rows and columns away."""
    axes = []
    for size, count in zip(grid, cells, strict=True):
        home = np.arange(size) * count // size
        axes.append(np.abs(home - np.arange(count)[:, None]) <= neighbourhood // 2)
    return (axes[0][:, None, :, None] & axes[1][None, :, None, :]).reshape(cells[0] * cells[1], grid[0] * grid[1])


def local_soft_k_means(
    x: Float[Array, "B P D"],
    grid: tuple[int, int],
    cells: tuple[int, int],
    iterations: int = 5,
    temperature: float = 0.02,
    neighbourhood: int = 5,
    valid: Bool[Array, "B P"] | None = None,
) -> tuple[Float[Array, "B M D"], Float[Array, "B M P"], Bool[Array, "B M"]]:
    """(centroids in float32, share of every patch in every cell, which cells are real) on a grid, of Expedit.

    Superpixels: every patch is shared among the cells near its own by softmax(-temperature * squared distance), and
    a cell's centroid becomes the mean of its shares. Starts from adaptive average pooling. Without `valid` all M cells
    are real, else those that some real patch was pooled into. No gradient through the shares, as in the released code
    (arXiv:2210.01035).
    """
    x = x.astype(jnp.float32)
    real = jnp.ones(x.shape[:2], bool) if valid is None else valid
    x = jnp.where(real[..., None], x, 0)
    near = jnp.asarray(near_cells(grid, cells, neighbourhood))
    pool = np.einsum("hy,wx->hwyx", pooling_matrix(grid[0], cells[0]), pooling_matrix(grid[1], cells[1]))

    def mean(share):
        mass = share.sum(-1, keepdims=True)
        return jnp.einsum("bmp,bpd->bmd", share, x, precision=lax.Precision.HIGHEST) / jnp.maximum(mass, 1e-16)

    first = jnp.asarray(pool.reshape(near.shape)) * real[:, None]
    exists = first.sum(-1) > 0

    def shares(centroids):
        centroids = lax.stop_gradient(centroids)
        # the patch's own norm is the same for all cells and cancels in the softmax
        dots = jnp.einsum("bmd,bpd->bmp", centroids, lax.stop_gradient(x), precision=lax.Precision.HIGHEST)
        d = (centroids * centroids).sum(-1)[..., None] - 2 * dots
        share = jax.nn.softmax(jnp.where(near & exists[..., None], -temperature * d, -1e30), axis=1)
        return jnp.where(real[:, None], share, 0)

    def step(_, state):
        share = shares(state[0])
        return mean(share), share

    centroids, share = lax.fori_loop(0, iterations, step, (mean(first), first))
    return centroids, share, exists
