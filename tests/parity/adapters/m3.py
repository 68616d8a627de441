"""M3: nested average pooling, also where windows do not fit."""

from __future__ import annotations

import math

import jax
import numpy as np

from jtok.methods.catalogue import make_plan
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import from_features
from tests.parity.case import Case

SLUG = "m3"


def core(case: Case) -> dict[str, np.ndarray]:
    x, scales = case.inputs["x"], case.params["scales"]
    side = math.isqrt(x.shape[1])
    target = Target(1, (side, side), x.shape[2], layers=1)

    def pooled(scale: int):
        reducer = make_plan("m3", target, tokens=scale, scales=scales).at("projector")
        return jax.jit(lambda x: reducer(from_features(x, target.grid), Signals(), {})[0].x)(x)

    return {f"tokens_{scale}": pooled(scale) for scale in scales}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0.0, 1e-6)}
