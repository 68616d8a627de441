"""ToMe: matchings and merges, schedules, and a whole tower with merging in every block."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jtok import make_plan
from jtok.ops import merge
from jtok.ops.schedule import ramp
from jtok.tokens import from_features
from tests.parity import timm_weights
from tests.parity.case import Case

SLUG = "tome"


def core(case: Case) -> dict[str, np.ndarray]:
    metric, p = jnp.asarray(case.inputs["metric"]), case.params
    n = metric.shape[1]
    if "k" in p:
        k = max(p["k"], 1)
        return merged(case, merge.kth_bipartite(metric, k), 0, n // k * k)
    special = int(p["class_token"]) + int(p["distill_token"])
    return merged(case, merge.bipartite(metric, p["r"], special), special, n)


def random(case: Case) -> dict[str, np.ndarray]:
    metric = jnp.asarray(case.inputs["metric"])
    noise = jnp.asarray(case.inputs["rand"]).reshape(metric.shape[:2])
    return merged(case, merge.random_bipartite(metric, noise, case.params["r"]), 0, metric.shape[1])


def merged(case: Case, match: merge.Matching, special: int, length: int) -> dict[str, np.ndarray]:
    """Everything a matching can be used for; `length` is how many tokens an unmerge gives back."""
    x = jnp.asarray(case.inputs["x"])
    n, assign = x.shape[1], match.assign(x.shape[1])
    tokens = from_features(x, (n - special,), special)
    mean, plain = tokens.join(match, "mean").x, tokens.join(match)
    member = assign[:, None] == jnp.arange(mean.shape[1])[:, None]
    out = {
        "merged_sum": tokens.join(match, "sum").x,
        "merged_mean": mean,
        "merged_amax": jnp.where(member[..., None], x[:, None], -jnp.inf).max(2),
        "wavg_x_nosize": plain.x,
        "wavg_size_nosize": plain.size[..., None],
        "source": member.astype(jnp.float32),
        "unmerged": match.unmerge(mean, n)[:, :length],
    }
    if "size" in case.inputs:
        sized = tokens.replace(size=jnp.asarray(case.inputs["size"])[..., 0]).join(match)
        out |= {"wavg_x": sized.x, "wavg_size": sized.size[..., None]}
    return out


def schedule(case: Case) -> dict[str, np.ndarray]:
    rows = np.full(case.outputs["schedule"].shape, -1)
    layers, r, inflect = (case.inputs[name] for name in ("layers", "r", "inflect"))
    for i, depth in enumerate(layers):
        rows[i, :depth] = ramp(int(r[i]), float(inflect[i]), int(depth))
    return {"schedule": rows}


def vit(case: Case) -> dict[str, np.ndarray]:
    p = case.params
    model = timm_weights.vit(case.weights, p["num_heads"], p["patch"], p["ln_eps"])
    images = jnp.asarray(case.inputs["image"]).transpose(0, 2, 3, 1)
    r = (p["r"][0], float(p["r"][1])) if isinstance(p["r"], list) and len(p["r"]) == 2 else p["r"]
    plan = make_plan("tome", model.config.target(images.shape[1]), r=r, proportional=p["prop_attn"])
    out, full = jax.jit(lambda images: (model(images, plan, hidden=True), model(images)))(images)
    return {
        "logits": out.logits,
        "logits_unmerged_model": full.logits,
        "size": out.tokens.size[..., None],
        "source": membership(out.tokens),
        "last_block": out.hidden[-1],
    }


def membership(tokens) -> np.ndarray:
    """[B,N,special + N0] which of the original tokens, special ones first, each token holds."""
    lead = jnp.broadcast_to(jnp.arange(tokens.special), (tokens.x.shape[0], tokens.special))
    owner = jnp.concatenate([lead, tokens.owner], 1)
    return (owner[:, None] == jnp.arange(tokens.count)[:, None]).astype(jnp.float32)


COMPONENTS = {"core": core, "random": random, "schedule": schedule, "vit": vit}
TOLERANCE = {"core": (0, 1e-5), "random": (0, 1e-5), "schedule": (0, 0), "vit": (0, 1e-4)}
