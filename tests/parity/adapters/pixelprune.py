"""PixelPrune: which merged tokens are kept, the pixels compared, and the shortened prompt."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jtok.methods.inputs.pixelprune import PixelPrune, unpredicted
from tests.parity.case import Case

SLUG = "pixelprune"


def select(case: Case) -> dict[str, np.ndarray]:
    p, at = case.params, 0
    rule = PixelPrune(p["method"], p["metric"], p["threshold"], p["anchored"])
    merged, masks, rows = p["merge_size"] ** 2, [], []
    for t, h, w in case.inputs["grid_thw"]:
        count = int(t * h * w)
        x = case.inputs["pixels"][at : at + count].reshape(1, count // merged, -1)
        kept = np.asarray(unpredicted(jnp.asarray(x), (int(h) // p["merge_size"], int(w) // p["merge_size"]), rule))[0]
        masks.append(kept)
        rows.append(np.flatnonzero(np.repeat(kept, merged)))
        at += count
    counts = np.array([mask.sum() for mask in masks])
    return {"mask": np.concatenate(masks), "counts": counts, "patch_index": np.concatenate(rows)}


def normalize(case: Case) -> dict[str, np.ndarray]:
    """Rows are channel, frame, y, x; only the first frame counts, in units of the range of pixels."""
    p = case.params
    values = case.inputs["pixel_values"].reshape(-1, p["channels"], p["temporal"], p["patch"] ** 2)
    return {"pixels": (values[:, :, 0] * 0.5 + 0.5).reshape(len(values), -1)}


def sequence(case: Case) -> dict[str, np.ndarray]:
    """Placeholders of dropped tokens leave the prompt; everything else keeps its place in the order."""
    ids, p = case.inputs["input_ids"], case.params
    kept = ids != p["image_token_id"]
    kept[~kept] = case.inputs["keep"]
    return {"keep_mask": kept, "input_ids": ids[kept][None], "inputs_embeds": case.inputs["inputs_embeds"][kept][None]}


COMPONENTS = {"select": select, "normalize": normalize, "sequence": sequence}
TOLERANCE = {"select": (0, 0), "normalize": (0, 1e-7), "sequence": (0, 0)}
