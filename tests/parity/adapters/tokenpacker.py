"""TokenPacker: coarse queries over windows of even and odd side."""

from __future__ import annotations

import jax
import numpy as np

from jtok.methods.catalogue import make_plan
from jtok.target import Target
from jtok.tokens import from_features
from tests.parity.case import Case
from tests.parity.projectors import loaded

SLUG = "tokenpacker"


def core(case: Case) -> dict[str, np.ndarray]:
    p, x, several = case.params, case.inputs["x"], case.inputs["x_multi"]
    side, width = p["raw_grid"], p["embed_dim"]
    target = Target(4, (side, side), width, layers=1, language_width=p["hidden_size"])
    plan = make_plan("tokenpacker", target, scale=p["scale_factor"], heads=p["num_heads"], layers=(1, 2, 3, 4))
    packer = loaded(plan, case.weights)
    taps = np.split(several, several.shape[-1] // width, -1)
    return {"tokens": jax.jit(lambda x, taps: packer(from_features(x, target.grid), taps).x)(x, taps)}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0.0, 1e-5)}
