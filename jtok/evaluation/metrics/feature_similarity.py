"""How alike are the features that two models give of the same images? CCA, CKA and Procrustes, in float64.

As "Which Tokens to Use? Investigating Token Reduction in Vision Transformers" (arXiv:2308.04657) compares class tokens.
Features are [d, n]: d dimensions, n images, and d below n; centre and scale them by `normalised` first.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from jtok.errors import UserError

Features = Float[np.ndarray, "d n"]


def normalised(x: Features) -> Features:
    """Features without their mean over images, divided by their Frobenius norm."""
    x = x - x.mean(1, keepdims=True)
    return x / np.linalg.norm(x)


def compare_features(a: Features, b: Features) -> dict[str, float]:
    """mean_cca, mean_sq_cca (means of canonical correlations and their squares), pwcca (one minus the mean weighted by
    how much of `a` each direction tells), cka_dist (one minus linear CKA) and procrustes, all of centred features.

    Raises UserError for features of different images, or of no more images than dimensions.
    """
    if a.shape[1] != b.shape[1]:
        raise UserError(f"features of {a.shape[1]} and of {b.shape[1]} images cannot be compared: take the same.")
    if max(len(a), len(b)) >= a.shape[1]:
        raise UserError(f"{a.shape[1]} images are too few for features of {max(len(a), len(b))}: take more.")
    rho, weights = _canonical(a, b)
    return {
        "mean_cca": float(rho.mean()),
        "mean_sq_cca": float((rho**2).mean()),
        "pwcca": float(1 - (weights * rho).sum()),
        "cka_dist": _cka_distance(a, b),
        "procrustes": float((a**2).sum() + (b**2).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")),
    }


def canonical_correlations(a: Features, b: Features) -> Float[np.ndarray, " r"]:
    """The canonical correlations, largest first."""
    return _canonical(a, b)[0]


def _canonical(a: Features, b: Features) -> tuple[np.ndarray, np.ndarray]:
    """(canonical correlations, share of each direction in `a`)."""
    root_a, root_b = _inverse_root(a @ a.T), _inverse_root(b @ b.T)
    u, rho, _ = np.linalg.svd(root_a @ (a @ b.T) @ root_b, full_matrices=False)
    weights = np.abs(u.T @ root_a @ a @ a.T).sum(1)
    return rho, weights / weights.sum()


def _inverse_root(c: np.ndarray) -> np.ndarray:
    """The symmetric inverse square root; directions without variance are left out."""
    values, vectors = np.linalg.eigh(c)
    values = np.maximum(values, 0)
    inverse = np.divide(1, np.sqrt(values), out=np.zeros_like(values), where=values > 0)
    return (vectors * inverse) @ vectors.T


def _cka_distance(a: Features, b: Features) -> float:
    same = np.linalg.norm(b @ a.T) ** 2
    return float(1 - same / (np.linalg.norm(a @ a.T) * np.linalg.norm(b @ b.T)))
