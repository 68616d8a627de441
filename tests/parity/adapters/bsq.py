"""BSQ: bits of unit vectors, both entropies, indices of groups and of all bits, and the gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jtok.tokenizers.quantizers.bottleneck import bits_to_index
from jtok.tokenizers.quantizers.bsq import BSQ
from tests.parity.case import Case

SLUG = "bsq"


def core(case: Case) -> dict[str, np.ndarray]:
    p, z, w = case.params, jnp.asarray(case.inputs["z"]), case.inputs["w"]
    bsq = BSQ(
        p["embed_dim"],
        p["group_size"],
        p["persample_entropy_compute"],
        spherical=p["l2_norm"],
        beta=p["beta"],
        per_sample_weight=p["gamma0"],
        codebook_weight=p["gamma"],
        weight=p["zeta"],
        inverse_temperature=p["inv_temperature"],
    )

    def total(z):
        result = bsq(z, train=True)
        return (result.values * w).sum() + result.losses["total"], result

    grad, result = jax.grad(total, has_aux=True)(z)
    mean = bsq.probabilities(z).mean((0, 1))
    return {
        "quantized": result.values,
        "loss": result.losses["total"],
        "indices": bits_to_index(z > 0),
        "group_indices": result.indices,
        "avg_prob": mean,
        "per_sample_entropy": result.losses["per_sample_entropy"],
        "codebook_entropy": result.losses["codebook_entropy"],
        "grad_z": grad,
        "group_codes": bsq.decode(result.indices),
    }


COMPONENTS = {"core": core}
TOLERANCE = {"core": (1e-5, 1e-6)}
