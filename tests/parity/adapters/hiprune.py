"""HiPrune: scores and masks of LLaVA and of Qwen2.5-VL; masks are exact."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.methods.vlm.hiprune import HiPrune, ObjectLayer, fill, neighbourhood
from jtok.signals import Signals
from jtok.tokens import from_features

SLUG = "hiprune"
TOLERANCE = {"llava": (0, 1e-6), "qwen-score": (0, 1e-5), "qwen-select": (0, 0)}


def llava(case):
    """Both reducers on tokens with a class token, whose signals are the recorded attention summed over queries."""
    received = {name: jnp.asarray(case.inputs[f"attn_{name}"]).mean(1).sum(1) for name in ("object", "deep")}
    crops, n = received["deep"].shape
    width, keep = case.params["grid_w"], int(case.params["retention"] / crops)
    t = from_features(jnp.zeros((crops, n, 1)), ((n - 1) // width, width), 1)
    t, _ = ObjectLayer()(t, Signals(attention_received=received["object"]), {})
    pruner = HiPrune(keep, round(keep * case.params["alpha"] / 5))
    left, _ = pruner(t, Signals(attention_received=received["deep"]), {})
    return {
        "score_object": received["object"][:, 1:] / n,
        "score_deep": received["deep"][:, 1:] / n,
        "mask": left.owner >= 0,
    }


def qwen_score(case):
    """What the tower gives a quad: attention received by its patches, their mean; windows put back in raster order."""
    received = jnp.asarray(case.inputs["attn"]).mean(0).sum(0)
    quads = received.reshape(-1, case.params["merge_unit"]).mean(-1)
    return {"score": quads[np.argsort(case.inputs["window_index"])]}


def qwen_select(case):
    """The mask of one image, and what is left of its prompt."""
    anchor, deep = (jnp.asarray(case.inputs[f"score_{name}"])[None] for name in ("object", "last"))
    n = deep.shape[1]
    keep = round(n * case.params["retention"])
    chosen = neighbourhood(anchor, round(keep * case.params["alpha"] / 5), jnp.arange(n)[None], case.params["grid_w"])
    mask = np.asarray(fill(chosen, deep, keep))[0]
    stays = case.inputs["input_ids"] != case.params["image_token_id"]
    stays[~stays] = mask
    return {"mask": mask, "seq_keep": stays}


COMPONENTS = {"llava": llava, "qwen-score": qwen_score, "qwen-select": qwen_select}
