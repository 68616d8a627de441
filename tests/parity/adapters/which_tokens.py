"""Which Tokens to Use?: comparisons of depth maps, merge maps and class features."""

from __future__ import annotations

import numpy as np

from jtok.evaluation.metrics.feature_similarity import canonical_correlations, compare_features
from jtok.evaluation.patterns.token_patterns import cluster_agreement, compare_maps, compose
from tests.parity.case import Case

SLUG = "which-tokens"


def metrics(case: Case) -> dict[str, np.ndarray]:
    given = case.inputs
    maps = compare_maps(given["map1"], given["map2"])
    one, two = (np.stack(compose([given[f"assign{side}_{i}"] for i in range(3)])) for side in (1, 2))
    features = compare_features(given["feat1"], given["feat2"])
    arrays = {
        **maps,
        **features,
        "composed1": one,
        "composed2": two,
        "hom_comp_nmi": np.stack(cluster_agreement(one, two), 1),
        "cca_rho": canonical_correlations(given["feat1"], given["feat2"]),
    }
    return {name: np.asarray(value) for name, value in arrays.items()}


COMPONENTS = {"metrics": metrics}
TOLERANCE = {"metrics": (1e-6, 1e-9)}
