"""The Fréchet distance between two sets of features: FID, where they are those of the FID Inception network.

"GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", arXiv:1706.08500. Features of
another network give another number: report it under that network's name.
"""

from __future__ import annotations

import dataclasses
import logging
import os

import numpy as np
from jaxtyping import Float

from jtok.errors import UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance (denominator N - 1) of features, float64."""

    mean: Float[np.ndarray, "D"]
    covariance: Float[np.ndarray, "D D"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "N D"]) -> Statistics:
        """Warns where fewer features than dimensions leave the covariance without full rank."""
        features = np.asarray(features, np.float64)
        n, d = features.shape
        if n < 2:
            raise UserError(f"{n} features have no covariance: give at least two images.")
        if n <= d:
            log.warning("%d features of %d dimensions: the Fréchet distance is biased; use more images", n, d)
        return cls(features.mean(0), np.atleast_2d(np.cov(features, rowvar=False)))

    @classmethod
    def load(cls, path: str | os.PathLike) -> Statistics:
        """From an .npz with `mu` and `sigma`, as reference statistics are published."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(file["mu"].astype(np.float64), file["sigma"].astype(np.float64))
        except (OSError, ValueError, KeyError):
            raise UserError(
                f"'{path}' holds no statistics: give an .npz with the arrays mu [D] and sigma [D,D]."
            ) from None


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)); the root by the eigenvalues of the product."""
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of {a.mean.size} and {b.mean.size} dimensions cannot be compared.")
    root = np.sqrt(np.clip(np.linalg.eigvals(a.covariance @ b.covariance).real, 0, None)).sum()
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root)


def inception_score(probabilities: Float[np.ndarray, "N C"], splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL divergence from the marginal, arXiv:1606.03498: (mean, standard deviation) over splits."""
    parts = np.array_split(np.asarray(probabilities, np.float64), splits)
    if min(len(part) for part in parts) < 1:
        raise UserError(f"{len(probabilities)} images cannot be cut into {splits} splits.")
    scores = []
    for p in parts:
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * (np.log(p) - np.log(p.mean(0, keepdims=True))), 0)
        scores.append(np.exp(terms.sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
