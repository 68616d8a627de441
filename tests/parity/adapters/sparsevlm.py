"""SparseVLM: both versions in a small Llama, the clusters, and the rank rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jtok import make_plan
from jtok.methods.vlm.sparsevlm import SparseVLM, clustered
from jtok.ops import select
from jtok.signals import Signals
from jtok.tokens import from_features
from tests.parity import language
from tests.parity.case import Case, difference

SLUG = "sparsevlm"


def core(case: Case) -> dict[str, np.ndarray]:
    p, x = case.params, case.inputs["inputs_embeds"]
    start, image, layers = p["sys_length"], p["image_tokens"], p["prune_layers"]
    target = language.target(image, p["layers"], p["heads"])
    blocks = [layer + 1 for layer in layers]  # the authors name the layer before
    version = int(float(p["version"].replace("_", ".")))
    plan = make_plan("sparsevlm", target, version=version, blocks=blocks, counts=p["keep_per_stage"])
    model = language.decoder(case.weights, p["heads"], p["rms_eps"], p["rope_theta"])
    last, memory = language.run(model, x, [start], image, language.watched(plan))
    chosen = np.flatnonzero(np.asarray(memory["sparsevlm"]["raters"])[0])
    out = {"rater_index_rel_text": chosen, "last_hidden": model.norm(last.x)}
    for stage, layer in enumerate(layers):
        weights, part = language.entering(layer + 1, case.weights, plan)
        entering, _ = language.run(language.decoder(weights, p["heads"], p["rms_eps"]), x, [start], image, part)
        record = memory["watched"][stage + 1]
        arrays = {"hidden_next_layer_input": entering.x, "position_ids": entering.position[..., 0]}
        arrays |= stage_arrays(list(plan.sites.values())[stage + 1], record, memory)
        out |= {f"stage{stage}_{name}": value for name, value in arrays.items()}
    return out


def stage_arrays(reducer: SparseVLM, record: dict, memory: dict) -> dict[str, np.ndarray]:
    """What a stage chose, merged, and made of it."""
    before, after, n = record["before"], record["tokens"], record["before"].count
    keep = int(reducer.each(before, record["signals"], memory)[0])
    index, _ = select.top_each(record["score"], jnp.asarray([keep]), keep)
    kept = select.members(index, n)
    arrays = {"keep_mask": kept, "vis_score": record["score"]}
    if reducer.version == 1:
        slots = 3 * (n - keep) // 10 + 1
        pool, _ = reducer.pool(before, record["score"], ~kept, slots)
        arrays |= {"merge_input": pool.x, "merge_clusters": after.x[:, keep:]}
    return arrays


def clusters(case: Case) -> dict[str, np.ndarray]:
    """Recorded with the noise that breaks ties set to zero, so that they are not broken."""
    x = jnp.asarray(case.inputs["x"])
    pool, none = from_features(x, (1, x.shape[1])), jnp.zeros(x.shape[:2])
    run = jax.jit(lambda k: clustered(pool, k, noise=none).x, static_argnums=0)
    return {f"merged_{k}": run(k) for k in case.params["cluster_num"]}


def rank(case: Case) -> dict[str, np.ndarray]:
    p, n = case.params, case.params["image_tokens"]
    attention = jnp.asarray(case.inputs["attn"])[:, :, p["text_start"] :, p["sys_length"] : p["sys_length"] + n]
    tokens = from_features(jnp.zeros((1, n, 1)), (1, n))
    text = attention.shape[2]
    chosen = np.isin(np.arange(text), case.inputs["rater_rel_index"])[None]
    memory = {"sparsevlm": {"raters": jnp.asarray(chosen), "first": tokens.mask()}}
    out = {}
    for i, rule in enumerate(p["scale_bias"]):
        reducer, signals = SparseVLM(1.0, n, adaptive=tuple(rule)), Signals(text_attention=attention)
        after, _ = jax.jit(lambda t, s, r=reducer: r(t, s, memory))(tokens, signals)
        slot = np.asarray(after.owner)
        slots = reducer._sizes(n, n)[0]  # the clusters follow
        out[f"mask_{i}"] = (slot >= 0) & (slot < slots)
        out[f"score_{i}"] = reducer.score(tokens, signals, memory)
    return out


def compare(case: Case, got: dict[str, np.ndarray]) -> float:
    """Hidden states between layers are not normed, with values in the tens."""
    errors = []
    for name, want in case.outputs.items():
        loose = name.endswith(("hidden_next_layer_input", "merge_input", "merge_clusters"))
        errors.append(difference(name, got[name], want, 1e-4, 1e-4 if loose else 1e-5))
    return max(errors)


COMPONENTS = {"core": core, "cluster": clusters, "rank": rank}
TOLERANCE = {"core": (1e-4, 1e-5), "cluster": (1e-4, 1e-5), "rank": (1e-4, 1e-5)}
