"""VTW: a small Llama whose visual tokens leave before a layer, with two tokens of an answer, and the layer search."""

from __future__ import annotations

import jax
import numpy as np

from jtok import make_plan
from jtok.methods.vlm.vtw import divergences, first_layer
from tests.parity import language
from tests.parity.case import Case

SLUG = "vtw"


def llama(case: Case) -> dict[str, np.ndarray]:
    p, x = case.params, case.inputs["inputs_embeds"]
    model = language.decoder(case.weights, p["heads"], p["rms_eps"], p["rope_theta"])
    positions = {"keep": "keep", "compact": "renumber"}[p["positions"]]
    target = language.target(p["image_tokens"], p["layers"], p["heads"])
    plan = make_plan("vtw", target, layer=p["k"], positions=positions)
    after = case.inputs["next_embeds"]
    sequence, caches, answer = language.answered(model, x, [p["sys_length"]], p["image_tokens"], plan, after)
    return {
        "last_hidden": model.norm(sequence.x),
        "cache_lengths": language.cache_lengths(caches, after.shape[1]),
        "decode_hidden": model.norm(answer),
    }


def findk(case: Case) -> dict[str, np.ndarray]:
    p = case.params
    model = language.decoder(case.weights, p["heads"], p["rms_eps"], p["rope_theta"])

    def kl(sample: np.ndarray) -> np.ndarray:
        def logits(plan) -> jax.Array:
            out, _ = language.run(model, sample[None], [p["sys_length"]], p["image_tokens"], plan)
            return model.norm(out.x)[:, -1] @ case.weights["lm_head.weight"].T

        return divergences(logits, p["layers"], p["first_layer"])

    found = np.concatenate([kl(sample) for sample in case.inputs["inputs_embeds"]])
    return {"kl": found, "k": np.array([first_layer(found, p["first_layer"], p["eta"])])}


COMPONENTS = {"llama": llama, "findk": findk}
TOLERANCE = {"llama": (1e-4, 5e-5), "findk": (1e-4, 5e-5)}
