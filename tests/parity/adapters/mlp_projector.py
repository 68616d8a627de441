"""The MLP of LLaVA-1.5 and the single linear layer."""

from __future__ import annotations

import jax
import numpy as np

from jtok.methods.catalogue import make_plan
from jtok.target import Target
from jtok.tokens import from_features
from tests.parity.case import Case
from tests.parity.projectors import loaded

SLUG = "mlp-projector"


def core(case: Case) -> dict[str, np.ndarray]:
    x = case.inputs["x"]
    out = next(a.shape[0] for name, a in case.weights.items() if name.endswith("bias"))
    target = Target(1, (1, x.shape[1]), x.shape[2], layers=1, language_width=out)
    plan = make_plan("mlp-projector", target, projector=case.params["type"], pool="none")
    projector = loaded(plan, case.weights)
    return {"tokens": jax.jit(lambda x: projector(from_features(x, target.grid)).x)(x)}


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0.0, 1e-5)}
