"""AvisC: layers, masked tokens and logits from recorded attention."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.methods.decoding.avisc import Calibrate
from tests.parity.case import Case

SLUG = "avisc"


def calib(case: Case) -> dict[str, np.ndarray]:
    p = case.params
    rule = Calibrate(p["layer_gamma"], p["lamb"], "zeros", p["alpha"], p["beta"])
    image = slice(p["image_start"], p["image_start"] + p["image_tokens"])
    attention = jnp.asarray(case.inputs["attn"]).mean(2)[:, :, -1, image]
    portion = rule.portions(attention)
    masked = rule.masked(attention, jnp.ones(attention.shape[1:], bool))
    order = np.argsort(-np.asarray(portion[:, 0]), kind="stable")
    return {
        "layer_portion": portion[:, 0],
        "layers": order[np.asarray(rule.chosen(portion))[order, 0]],
        "mask_index": np.stack([np.flatnonzero(row) for row in np.asarray(masked)]),
        "logits": rule(jnp.asarray(case.inputs["logits"]), jnp.asarray(case.inputs["logits_blind"])),
    }


COMPONENTS = {"calib": calib}
TOLERANCE = {"calib": (1e-5, 1e-6)}
