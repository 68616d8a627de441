"""LFQ: bits, indices, the two entropies and the gradient of all losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jtok.tokenizers.quantizers.lfq import LFQ
from tests.parity.case import Case

SLUG = "lfq"


def core(case: Case) -> dict[str, np.ndarray]:
    p, w = case.params, case.inputs["w"]
    lfq = LFQ(
        p["bits"],
        p["num_codebooks"],
        entropy_weight=p["entropy_loss_weight"],
        commitment_weight=p["commitment_loss_weight"],
        diversity=p["diversity_gamma"],
        inverse_temperature=p["inv_temperature"],
    )

    def total(x):
        result = lfq(x, train=True)
        return (result.values * w).sum() + result.losses["total"], result

    grad, result = jax.grad(total, has_aux=True)(jnp.asarray(case.inputs["x"]))
    return {
        "quantized": result.values,
        "indices": result.indices,
        "aux_loss": result.losses["total"],
        "per_sample_entropy": result.losses["per_sample_entropy"],
        "batch_entropy": result.losses["batch_entropy"],
        "commit_loss": result.losses["commitment"],
        "grad_x": grad,
        "codes_from_indices": lfq.decode(result.indices),
    }


COMPONENTS = {"core": core}
TOLERANCE = {"core": (1e-5, 1e-6)}
