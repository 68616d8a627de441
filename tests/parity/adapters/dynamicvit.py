"""DynamicViT: predictor, masked attention, and a whole tower at inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.layers.block import Attention
from jtok.methods.vit.dynamicvit import DynamicViT, Predictor
from jtok.models.towers.vit import ViTConfig
from jtok.ops import score, select
from jtok.plan import Plan, at_blocks
from jtok.tokens import from_features
from tests.parity import timm_weights
from tests.parity.case import Case

SLUG = "dynamicvit"


def predictor_params(weights: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    return {
        "norm": timm_weights.norm(weights, f"{prefix}in_conv.0"),
        "mix": timm_weights.linear(weights, f"{prefix}in_conv.1"),
        "down": {i: timm_weights.linear(weights, f"{prefix}out_conv.{2 * i}") for i in range(2)},
        "out": timm_weights.linear(weights, f"{prefix}out_conv.4"),
    }


def modules(case: Case) -> dict[str, np.ndarray]:
    inputs = case.inputs
    width, heads = inputs["x"].shape[-1], case.params["num_heads"]
    predictor = timm_weights.fill(lambda: Predictor(width, nnx.Rngs(0)), predictor_params(inputs, "pred_param/"))
    params = timm_weights.attention(inputs, "attn_param/", heads)
    config = ViTConfig(width=width, heads=heads)
    attention = timm_weights.fill(lambda: Attention(config, nnx.Rngs(0)), params)

    def run(x, policy, xa, policy_cls, raw):
        fresh = predictor(x, jnp.ones_like(policy))
        tokens = from_features(xa, (xa.shape[1] - 1,), 1).replace(policy=policy_cls)
        return {
            "logp": predictor(x, policy),
            "logp_allones": fresh,
            "keep_idx": select.top_k(fresh[..., 0], case.params["keep"], order="score"),
            "attn_softmax": score.policy_softmax(raw, policy_cls),
            "attn_out": attention(xa, tokens)[0],
        }

    policies = inputs["policy"][..., 0], inputs["policy_cls"][..., 0]
    return jax.jit(run)(inputs["x"], policies[0], inputs["xa"], policies[1], inputs["raw_attn"])


def model(case: Case) -> dict[str, np.ndarray]:
    p = case.params
    tower = timm_weights.vit(case.weights, p["num_heads"], p["patch"], p["ln_eps"])
    c, reducers = tower.config, []
    for i, rate in enumerate(p["keep_rate"]):
        keep = int(rate * c.target().patches)
        params = {"predictor": predictor_params(case.weights, f"score_predictor.{i}.")}
        reducers.append(timm_weights.fill(lambda k=keep, i=i: DynamicViT(c.width, k, i, nnx.Rngs(0)), params))
    plan = Plan(at_blocks(p["reduction_loc"], "input", reducers))
    return {"logits": jax.jit(lambda image: tower(image, plan).logits)(case.inputs["image"].transpose(0, 2, 3, 1))}


COMPONENTS = {"modules": modules, "model": model}
TOLERANCE = {"modules": (0, 1e-5), "model": (0, 1e-4)}  # the recorded predictor adds 1e-6 to what it pools
