"""PyramidDrop: a small Llama with three stages, and one ranking of sequences with answers."""

from __future__ import annotations

import numpy as np

from jtok import make_plan
from jtok.methods.vlm.pyramiddrop import PyramidDrop
from jtok.plan import Plan
from tests.parity import language
from tests.parity.case import Case, difference

SLUG = "pyramiddrop"


def llama(case: Case) -> dict[str, np.ndarray]:
    p, x, starts = case.params, case.inputs["inputs_embeds"], case.inputs["image_start"]
    image, target = p["image_tokens"], language.target(p["image_tokens"], p["layers"], p["heads"])
    model = language.decoder(case.weights, p["heads"], p["rms_eps"], p["rope_theta"])
    plan = make_plan("pyramiddrop", target, blocks=p["layer_list"], rates=p["image_token_ratio_list"])
    last, memory = language.run(model, x, starts, image, language.watched(plan))
    out = {"last_hidden": model.norm(last.x)}
    for stage, layer in enumerate(p["layer_list"]):
        record = memory["watched"][stage]
        kept = language.taken(record["before"], record["tokens"])
        for row in range(len(x)):
            out[f"stage{stage}_b{row}_score"] = record["score"][row]
            out[f"stage{stage}_b{row}_keep_rel_index"] = kept[row]
        weights, part = language.entering(layer, case.weights, plan)
        entering, _ = language.run(language.decoder(weights, p["heads"], p["rms_eps"]), x, starts, image, part)
        out[f"stage{stage}_hidden"] = entering.x
    return out


def train_rank(case: Case) -> dict[str, np.ndarray]:
    """The layer after the site has no values and no MLP, so that its output is what was kept."""
    p, labels = case.params, case.inputs["labels"]
    image, mask = p["image_tokens"], case.inputs["attention_mask"]
    weights = {k: v for k, v in case.weights.items() if any(part in k for part in ("layernorm", "q_proj", "k_proj"))}
    model = language.decoder(weights, p["heads"], p["rms_eps"], p["rope_theta"])
    plan = Plan({"llm.input": PyramidDrop(p["ratio"], image)}, positions="renumber")
    before_answers = (labels[:, :-1] == -100) & (labels[:, 1:] != -100)
    most = before_answers.sum(1).max()
    asks = np.full((len(labels), most), -1)
    for row, found in enumerate(before_answers):
        asks[row, : found.sum()] = np.flatnonzero(found)
    starts = case.inputs["image_start"]
    out, _ = language.run(model, case.inputs["features"], starts, image, plan, valid=mask, asks=asks)
    valid, others = np.asarray(out.valid), np.asarray(out.others)
    said = np.stack([np.delete(row, np.arange(s, s + image)) for row, s in zip(labels, starts, strict=True)])
    after = np.full(valid.shape, -100)
    np.put_along_axis(after, others, said, 1)
    return {
        "features": np.where(valid[..., None], out.x, 0),
        "labels": np.where(valid, after, -100),
        "attention_mask": valid,
        "position_ids": np.where(valid, out.position[..., 0], 0),
    }


def compare(case: Case, got: dict[str, np.ndarray]) -> float:
    """Hidden states between layers are not normed, with values in the tens."""
    errors = []
    for name, want in case.outputs.items():
        between = name.endswith("hidden") and name != "last_hidden"
        errors.append(difference(name, got[name], want, 1e-4, 1e-4 if between else 1e-5))
    return max(errors)


COMPONENTS = {"llama": llama, "train-rank": train_rank}
TOLERANCE = {"llama": (1e-4, 1e-5), "train-rank": (1e-4, 1e-5)}
