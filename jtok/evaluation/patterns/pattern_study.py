"""Which tokens do methods agree on, and does agreement predict similar performance? Tables from recorded patterns.

After "Which Tokens to Use? Investigating Token Reduction in Vision Transformers" (arXiv:2308.04657): kept sets are
compared by intersection over union, merge maps by their v-measure, both after the last site; numbers are means over
images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import kendalltau, spearmanr

from jtok.evaluation.metrics.feature_similarity import compare_features, normalised
from jtok.evaluation.patterns.record_patterns import Pattern
from jtok.evaluation.patterns.token_patterns import (
    cluster_agreement,
    compare_maps,
    depth_map,
    intersection_over_area,
    intersection_over_union,
    kept,
    radial_pattern,
)
from jtok.sites import Site

Row = dict[str, Any]
NORMS = ("l1", "l2", "max")


def keeps_of(patterns: Sequence[Pattern]) -> list[float]:
    """Keep ratios at which something was reduced, largest first."""
    return sorted({p.keep for p in patterns if p.sites and p.keep is not None}, reverse=True)


def at(patterns: Sequence[Pattern], keep: float, merges: bool | None = None) -> list[Pattern]:
    """The patterns at one ratio: of those that merge, of the others, or (None) of both."""
    return [p for p in patterns if p.sites and p.keep == keep and merges in (None, p.merges)]


def iou(a: Pattern, b: Pattern) -> float:
    """Of the kept sets after the last site, mean over images."""
    return float(intersection_over_union(kept(a.owner[-1]), kept(b.owner[-1])).mean())


def v_measure(a: Pattern, b: Pattern) -> float:
    """Of the merge maps after the last site, mean over images."""
    return float(cluster_agreement(a.owner[-1], b.owner[-1])[2].mean())


def cka_distance(a: Pattern, b: Pattern) -> float:
    """One minus linear CKA of what is read off at the end."""
    one, two = (normalised(p.feature.astype(np.float64).T) for p in (a, b))
    return compare_features(one, two)["cka_dist"]


def accuracy_rows(patterns: Sequence[Pattern]) -> list[Row]:
    """Accuracy (%) of every method by keep ratio, and of the unreduced model."""
    rows: dict[str, Row] = {}
    for p in patterns:
        kind = ("merge maps" if p.merges else "kept sets") if p.sites else None
        row = rows.setdefault(p.method, {"method": p.method, "compared by": kind})
        row[_column(p)] = None if p.accuracy is None else 100 * p.accuracy
    return list(rows.values())


def _column(p: Pattern) -> str:
    if not p.sites:
        return "whole"
    return "as it is" if p.keep is None else f"{p.keep:g}"


def matrix_rows(patterns: Sequence[Pattern], measure: Callable[[Pattern, Pattern], float]) -> list[Row]:
    """`measure` between every two of the patterns, above the diagonal."""
    return [
        {"method": a.method} | {b.method: measure(a, b) for b in patterns[i + 1 :]} for i, a in enumerate(patterns[:-1])
    ]


def ratio_rows(patterns: Sequence[Pattern]) -> list[Row]:
    """How much of what a method keeps at a lower ratio it keeps at a higher one (intersection over area)."""
    rows = []
    for method in dict.fromkeys(p.method for p in patterns if p.sites and not p.merges):
        of_method = sorted((p for p in patterns if p.method == method and p.keep is not None), key=lambda p: -p.keep)
        row: Row = {"method": method}
        for high, low in itertools.combinations(of_method, 2):
            share = intersection_over_area(kept(high.owner[-1]), kept(low.owner[-1]))
            row[f"{low.keep:g} in {high.keep:g}"] = float(share.mean())
        rows.append(row)
    return rows


def radial_rows(patterns: Sequence[Pattern], keep: float) -> list[Row]:
    """IoU of kept sets with the patches nearest to the centre of the (square) grid, as many of them, by three norms."""
    rows = []
    for p in at(patterns, keep, merges=False):
        mask = kept(p.owner[-1])
        count = round(float(mask.sum(1).mean()))
        row: Row = {"method": p.method, "patches kept": count}
        for norm in NORMS:
            fixed = radial_pattern(p.grid[0], count, norm)
            row[norm] = float(intersection_over_union(mask, fixed[None]).mean())
        rows.append(row)
    return rows


def mean_depths(p: Pattern) -> Float[np.ndarray, "H W"]:
    """Mean over images of the tower's block in which each patch is left out; for what stays, how many there are."""
    blocks = [Site.parse(site).layer for site in p.sites]
    return depth_map([kept(owner) for owner in p.owner], blocks, p.depth).mean(0).reshape(p.grid)


def _in_tower(site: Site) -> bool:
    return site.stage == "tower" and site.layer is not None


def depth_rows(patterns: Sequence[Pattern], keep: float) -> list[Row]:
    """Mean depth maps of every two methods that keep sets in the tower, compared."""
    chosen = [p for p in at(patterns, keep, merges=False) if all(_in_tower(Site.parse(site)) for site in p.sites)]
    maps = {p.method: mean_depths(p) for p in chosen}
    return [{"maps": f"{a}, {b}"} | compare_maps(maps[a], maps[b]) for a, b in itertools.combinations(maps, 2)]


def pictures(
    patterns: Sequence[Pattern], keep: float
) -> tuple[dict[str, Float[np.ndarray, "H W"]], dict[str, tuple[list[str], Float[np.ndarray, "M M"]]]]:
    """(share of images that keep each patch, by method; agreement of every two methods, by kind), as
    `jtok.viz.patterns.draw_patterns` takes them."""
    sets, merges = at(patterns, keep, merges=False), at(patterns, keep, merges=True)
    maps = {p.method: kept(p.owner[-1]).mean(0).reshape(p.grid) for p in sets}
    kinds = (("kept sets: intersection over union", sets, iou), ("merge maps: v-measure", merges, v_measure))
    alike = {
        f"{title}, keep {keep:g}": ([p.method for p in group], np.array([[f(a, b) for b in group] for a in group]))
        for title, group, f in kinds
        if group
    }
    return maps, alike


def proxy_rows(patterns: Sequence[Pattern]) -> list[Row]:
    """Rank correlations of a pair's gap in accuracy with the similarity of its patterns and features.

    Over the pairs of methods at one keep ratio, and over those at all ratios; negative: the more alike, the nearer in
    accuracy. A distance (cka) is the other way round. Empty for fewer than four pairs, or where all are equal.
    """
    rows = []
    keeps = keeps_of(patterns)
    for title, merges, measure in (
        ("kept sets, IoU", False, iou),
        ("merge maps, v-measure", True, v_measure),
        ("features, CKA distance", None, cka_distance),
    ):
        known = [p for p in patterns if p.accuracy is not None]
        pairs = {k: list(itertools.combinations(at(known, k, merges), 2)) for k in keeps}
        found = {k: [(abs(a.accuracy - b.accuracy), measure(a, b)) for a, b in pairs[k]] for k in keeps}
        for keep, points in {**{f"{k:g}": v for k, v in found.items()}, "all": sum(found.values(), [])}.items():
            rows.append({"measure": title, "keep": keep, "pairs": len(points)} | _correlations(points))
    return rows


def _correlations(points: Sequence[tuple[float, float]]) -> Row:
    if len(points) < 4 or min(len(set(column)) for column in zip(*points, strict=True)) < 2:
        return {"Spearman": None, "Kendall": None}
    gap, alike = zip(*points, strict=True)
    return {"Spearman": float(spearmanr(gap, alike).statistic), "Kendall": float(kendalltau(gap, alike).statistic)}
