"""FitPrune: one selection, a small Llama with a recipe, and the fit of a recipe."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jtok import make_plan
from jtok.methods.vlm.fitprune import MEMORY, FitPrune, Layers, Shape, fit, joined, thresholds
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity import language
from tests.parity.case import Case

SLUG = "fitprune"


def select(case: Case) -> dict[str, np.ndarray]:
    """The two sums come from the recorded probabilities; the attention kernel's are tested with the Llama."""
    p, attention = case.params, case.inputs["attn"].max(1)
    start, stop = p["sys_length"], p["sys_length"] + p["image_tokens"]
    inside = attention[:, start:stop, start:stop].mean(1)
    cross = attention[:, stop:, start:stop].sum(1)
    tokens = from_features(jnp.zeros((1, p["image_tokens"], 1)), (1, p["image_tokens"]))
    reducer = FitPrune(1 - p["delete"] / p["image_tokens"], p["image_tokens"])
    out, _ = reducer(tokens, Signals(peak_attention=jnp.asarray(inside), peak_text_attention=jnp.asarray(cross)), {})
    keep = np.ones(attention.shape[1], bool)
    keep[start:stop] = np.asarray(out.owner[0]) >= 0
    return {"self_attention": inside[0], "cross_attention": cross[0], "keep": keep}


def llama(case: Case) -> dict[str, np.ndarray]:
    p, x, after = case.params, case.inputs["inputs_embeds"], case.inputs["next_embeds"]
    start, image = [p["sys_length"]], p["image_tokens"]
    model = language.decoder(case.weights, p["heads"], p["rms_eps"], p["rope_theta"])
    plan = make_plan("fitprune", language.target(image, p["layers"], p["heads"]), removals=p["delete_scheme"])
    sequence, caches, answer = language.answered(model, x, start, image, plan, after)
    return {
        "last_hidden": model.norm(sequence.x),
        "cache_lengths": language.cache_lengths(caches, after.shape[1]),
        "positions_last_layer": np.asarray(caches[-1].position[0, : caches[-1].slots - after.shape[1], 0]),
        "decode_hidden": model.norm(answer),
    }


def fitted(case: Case) -> dict[str, np.ndarray]:
    p, x = case.params, case.inputs["inputs_embeds"]
    model = language.decoder(case.weights, p["heads"], p["rms_eps"], p["rope_theta"])
    starts = [p["sys_length"]] * len(x)
    read = jax.jit(lambda plan: language.run(model, x, starts, p["image_tokens"], plan)[1][MEMORY])

    def observe(bounds: Layers) -> Layers:
        return joined([read(thresholds(bounds))])

    shape = Shape(p["layers"], p["hidden"], p["intermediate"])
    found = fit(observe, len(x), shape, p["reduction_ratio"])
    return {
        "cross_sum": np.stack([layer["cross"] for layer in found.sums], 1) / p["text_tokens"],
        "self_sum": np.stack([layer["inside"] for layer in found.sums], 1),
        "alphas": np.float32(found.alphas),
        "reached": np.array(found.reached),
        "scheme": np.array(found.removals),
    }


COMPONENTS = {"select": select, "llama": llama, "fit": fitted}
TOLERANCE = {"select": (1e-5, 1e-5), "llama": (1e-4, 1e-5), "fit": (1e-5, 1e-5)}
