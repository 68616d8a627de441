"""FastV: a small Llama with tokens dropped, and with the same tokens hidden."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok import make_plan
from jtok.plan import Plan
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity import language
from tests.parity.case import Case

SLUG = "fastv"


def llama(case: Case) -> dict[str, np.ndarray]:
    p, x = case.params, case.inputs["inputs_embeds"]
    start, image, layer = p["sys_length"], p["image_tokens"], p["K"]
    target = language.target(image, p["layers"], p["heads"])
    model = language.decoder(case.weights, p["heads"], p["rms_eps"], p["rope_theta"])
    drop, mask = (make_plan("fastv", target, tokens=p["keep"], layer=layer, variant=v) for v in ("drop", "mask"))
    dropped, _ = language.run(model, x, [start], image, drop)
    hidden, _ = language.run(model, x, [start], image, mask)
    kept = np.asarray(dropped.position[0, :, 0])
    np.testing.assert_array_equal(kept, from_attention(case, drop), "the recorded attention alone chooses the same")
    cut, plan = language.entering(layer, case.weights, drop)
    entering, _ = language.run(language.decoder(cut, p["heads"], p["rms_eps"]), x, [start], image, plan)
    return {
        "keep_index": kept,
        "hidden_at_k": entering.x,
        "last_hidden_drop": model.norm(dropped.x),
        "last_hidden_mask": model.norm(hidden.x),
        "key_visible_mask_variant": np.asarray(hidden.valid[0]).astype(np.int32),
    }


def from_attention(case: Case, plan: Plan) -> np.ndarray:
    """Slots that stay, by the attention that was recorded."""
    p, (reducer,) = case.params, plan.sites.values()
    image = slice(p["sys_length"], p["sys_length"] + p["image_tokens"])
    attention = jnp.asarray(case.inputs["attn_layer_km1"])[:, :, -1, image]
    tokens = from_features(jnp.zeros((1, p["image_tokens"], 1)), (1, p["image_tokens"]))
    kept, _ = reducer(tokens, Signals(last_token_attention=attention), {})
    length = case.inputs["inputs_embeds"].shape[1]
    dropped = image.start + np.flatnonzero(np.asarray(kept.owner[0]) < 0)
    return np.delete(np.arange(length), dropped)


COMPONENTS = {"llama": llama}
TOLERANCE = {"llama": (1e-4, 1e-5)}
