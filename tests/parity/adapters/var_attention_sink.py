"""VAR: the rule over recorded attention, with values that show what became of each probability."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.methods.vlm.var_attention_sink import RedistributeSinks
from jtok.slots import Attending
from tests.parity.case import Case

SLUG = "var-attention-sink"


def redist(case: Case) -> dict[str, np.ndarray]:
    """The values are the identity, so that the output of attention is the attention matrix."""
    p = case.params
    x, attention = (jnp.asarray(case.inputs[name]) for name in ("hidden", "attn"))
    b, heads, length, _ = attention.shape
    slots = jnp.arange(length)
    first, end = p["image_start"], p["image_start"] + p["vis_len"]
    prefill = p["stage"] == "prefill"
    rule = RedistributeSinks(p["tau"], p["rho"], p["summ"], p["p"], tuple(p["dim_sink"]))
    values = jnp.broadcast_to(jnp.eye(length)[None, :, None], (b, length, heads, length))
    valid = jnp.ones((b, length), bool)
    visual = jnp.broadcast_to((slots >= first) & (slots < end), valid.shape)
    a = Attending(x, values, values, values, valid, visual, jnp.broadcast_to((slots >= end) | ~prefill, valid.shape))

    def attend(v):
        return jnp.einsum("bhqk,bkhd->bqhd", attention, v)

    out, marks = rule(a, attend)
    chosen = rule.selected(a, marks["sink"], rule.masses(a, marks["sink"], attend))[..., 0]
    return {
        "sink_index": np.flatnonzero(np.asarray(marks["sink"][0])),
        "head_query_coords": np.argwhere(np.asarray(chosen.swapaxes(1, 2))),
        "attn": np.asarray(out.swapaxes(1, 2)),
        "row_changed": np.asarray((chosen & a.after_image[..., None]).swapaxes(1, 2)).astype(np.int32),
    }


COMPONENTS = {"redist": redist}
TOLERANCE = {"redist": (1e-5, 1e-6)}
