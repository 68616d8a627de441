"""FSQ: bounds, codes and indices of the three variants, and the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jtok.tokenizers.quantizers.fsq import FSQ
from tests.parity.case import Case

SLUG = "fsq"


def core(case: Case) -> dict[str, np.ndarray]:
    p, x, w = case.params, case.inputs["x"], case.inputs["w"]
    variant = "symmetric" if p.get("preserve_symmetry") else "atanh" if "atanh" in p["variant"] else "official"
    fsq = FSQ(tuple(p["levels"]), variant, p["eps"])
    result = fsq(x)
    rows = case.outputs.get("codebook", np.zeros((0,))).shape[0]
    return {
        "bounded": fsq.bound(jnp.asarray(x)),
        "codes": result.values,
        "indices": result.indices,
        "grad_x": jax.grad(lambda x: (fsq(x).values * w).sum())(jnp.asarray(x)),
        "codes_from_indices": fsq.decode(result.indices),
        "level_indices": fsq.digits(result.values),
        "codebook": fsq.decode(jnp.arange(rows)),
    }


COMPONENTS = {"core": core}
TOLERANCE = {"core": (0, 1e-6)}
