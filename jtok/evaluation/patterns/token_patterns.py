"""How alike are the patterns in which two models reduce tokens? Kept sets, merge maps, and maps of how deep patches go.

The comparisons of "Which Tokens to Use? Investigating Token Reduction in Vision Transformers" (arXiv:2308.04657), on
arrays of the host, in float64. `owner` [B,N] is the token that holds each of N patches, -1 = dropped, as in
`jtok.tokens.Tokens`; everything is vectorised over the B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import rel_entr
from scipy.stats import pearsonr, spearmanr, wasserstein_distance_nd

from jtok.errors import UserError

Owner = Int[np.ndarray, "B N"]
Mask = Bool[np.ndarray, "B N"]
Norm = Literal["l1", "l2", "max"]


def kept(owner: Owner) -> Mask:
    """Which patches go on as tokens of their own: neither dropped nor in one token with others (EViT's fused one)."""
    return (owner >= 0) & (_group_size(owner) == 1)


def intersection_over_union(a: Mask, b: Mask) -> Float[np.ndarray, " B"]:
    """|A and B| / |A or B| of two kept sets; 0 where they share nothing."""
    return (a & b).sum(1) / np.maximum((a | b).sum(1), 1)


def intersection_over_area(higher: Mask, lower: Mask) -> Float[np.ndarray, " B"]:
    """|A and B| / |B|: how much of the set of a lower keep ratio is inside that of a higher one."""
    return (higher & lower).sum(1) / np.maximum(lower.sum(1), 1)


def compose(assignments: Sequence[Int[np.ndarray, " n"]]) -> list[Int[np.ndarray, " N"]]:
    """Cluster of every original token after each stage, from what each stage did to its own inputs."""
    composed = [assignments[0]]
    for assign in assignments[1:]:
        composed.append(assign[composed[-1]])
    return composed


def cluster_agreement(a: Owner, b: Owner) -> tuple[Float[np.ndarray, " B"], ...]:
    """(homogeneity, completeness, v-measure) of merge maps, `a` the classes and `b` the clusters; natural logarithms.

    The v-measure is the mutual information normalised by the mean entropy (called NMI). Dropped patches (-1) are one
    cluster. A map with one cluster only is perfectly homogeneous (complete).
    """
    joint = a.astype(np.int64) * (int(b.max()) + 2) + b
    entropy_a, entropy_b = _entropy(a), _entropy(b)
    shared = np.maximum(entropy_a + entropy_b - _entropy(joint), 0)
    homogeneity, completeness = (
        np.where(h > 1e-12, shared / np.maximum(h, 1e-12), 1.0) for h in (entropy_a, entropy_b)
    )
    total = homogeneity + completeness
    return homogeneity, completeness, np.where(total > 0, 2 * homogeneity * completeness / np.maximum(total, 1e-12), 0)


def depth_map(stages: Sequence[Mask], blocks: Sequence[int], depth: int) -> Int[np.ndarray, "B N"]:
    """The block (counted from 0) in which each patch is left out, `depth` for those that reach the end.

    stages: kept sets after each stage; blocks: the block each stage is in.
    """
    drop_block = np.full(np.shape(stages[0]) if stages else (0, 0), depth, np.int64)
    for mask, block in reversed(list(zip(stages, blocks, strict=True))):
        drop_block = np.where(mask, drop_block, block)
    return drop_block


def compare_maps(a: Float[np.ndarray, "H W"], b: Float[np.ndarray, "H W"]) -> dict[str, float]:
    """Two maps over the grid of patches, such as mean depths, compared in seven ways.

    kl12 and kl21: sum of q log2(q / p), with p the first map and q the second, each divided by its sum (so kl12 is what
    the second has beyond the first), and the other way round; js: half of both against their mean, in that order; pcc,
    scc: Pearson's and Spearman's correlation; sim: what they share, each scaled to 0..1 and then to sum 1; emd: earth
    mover's distance of the maps of sum 1, in cells.
    """
    p, q = a / a.sum(), b / b.sum()
    mean = (p + q) / 2
    grid = np.argwhere(np.ones(a.shape, bool)).astype(np.float64)
    return {
        "kl12": _kl(p, q),
        "kl21": _kl(q, p),
        "js": 0.5 * _kl(p, mean) + 0.5 * _kl(q, mean),
        "pcc": float(pearsonr(a.ravel(), b.ravel()).statistic),
        "scc": float(spearmanr(a.ravel(), b.ravel()).statistic),
        "sim": float(np.minimum(_scaled(a), _scaled(b)).sum()),
        "emd": float(wasserstein_distance_nd(grid, grid, p.ravel(), q.ravel())),
    }


def radial_pattern(side: int, count: int, norm: Norm = "l2") -> Bool[np.ndarray, " N"]:
    """The patches of a square grid within a distance of its centre, as near to `count` of them as distances allow.

    Coordinates run in `side` steps from -(side // 2 rounded away from 0) to side // 2, both ends included, as in the
    paper's code; of two distances with counts equally near, the smaller. Raises UserError for an unknown norm.
    """
    axis = np.linspace(-side // 2, side // 2, side)
    x, y = np.abs(np.meshgrid(axis, axis))
    distances = {"l1": x + y, "l2": np.sqrt(x**2 + y**2), "max": np.maximum(x, y)}
    if norm not in distances:
        raise UserError(f"there is no distance '{norm}': choose one of {', '.join(distances)}.")
    z = distances[norm].ravel().round(9)  # equal distances differ in their last bits
    thresholds = np.unique(z)
    counts = (z[None] <= thresholds[:, None]).sum(1)
    return z <= thresholds[np.abs(counts - count).argmin()]


def _group_size(labels: Int[np.ndarray, "B N"]) -> Int[np.ndarray, "B N"]:
    """How many of a row have the label of each element."""
    shifted = labels - labels.min(initial=0)
    keys = shifted + np.arange(len(labels), dtype=np.int64)[:, None] * (int(shifted.max(initial=0)) + 1)
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[inverse].reshape(labels.shape)


def _entropy(labels: Int[np.ndarray, "B N"]) -> Float[np.ndarray, " B"]:
    return -np.log(_group_size(labels) / labels.shape[1]).mean(1)


def _kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(rel_entr(q, p).sum() / np.log(2))


def _scaled(x: np.ndarray) -> np.ndarray:
    x = x - x.min()
    with np.errstate(invalid="ignore"):  # a flat map has no shape: nan
        x = x / x.max()
        return x / x.sum()
