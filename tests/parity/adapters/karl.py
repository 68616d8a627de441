"""KARL: a small model at several budgets, and binning, halting and the decoder's mask alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.tokenizers import karl
from tests.parity.case import Case
from tests.parity.files import filled

SLUG = "karl"


def tiny(case: Case) -> dict[str, Any]:
    p, x = case.params, case.inputs
    shapes = {
        side: tuple(p[f"{side}_{part}"] for part in ("width", "num_layers", "num_heads"))
        for side in ("encoder", "decoder")
    }
    config = karl.KARLConfig(
        patch=p["patch_size"],
        **shapes,
        most=case.weights["latent_tokens"].shape[0],
        table=p["max_grid_tokens"],
        codebook=p["vq_codebook_size"],
        code_width=p["vq_token_dim"],
        quantize=p["quantize_latent"],
        base_width=p["base"]["embed_dim"],
        base_codes=p["base"]["codebook"],
    )
    net = filled(lambda: karl.KARL(config, nnx.Rngs(0)), case.weights)
    image, grid = (jnp.moveaxis(jnp.asarray(x[name]), 1, -1) for name in ("image", "base_tokens"))
    wanted = jnp.broadcast_to(x["desired_quality"], (image.shape[0],))
    out = {
        "condition_embedding": net.condition(wanted)[:, None, None],
        "condition_bin_value": np.float32(karl.BINS)[np.asarray(karl.error_bin(wanted))].reshape(-1, 1, 1),
    }
    for budget in sorted({int(name.rsplit("_", 1)[1]) for name in case.outputs if name.startswith("indices_")}):
        result = jax.jit(functools.partial(_at, net, budget))(image, grid, wanted)
        out |= {f"{name}_{budget}": value for name, value in result.items()}
    return out


def _at(net, budget, image, grid, wanted) -> dict[str, Any]:
    code = net.code(image, grid, wanted, budget)
    guess = net.guess(code)
    return {
        "latent_factorized": _before_quantizer(net, image, grid, wanted, budget),
        "halt_prob": jax.nn.sigmoid(code.extra["halt_logits"])[..., None],
        "indices": code.ids,
        "active_count": code.count[0],
        "decoder_logits": guess,
        "decoded_code": karl.guessed_code(guess, net.base_codebook[...]),
        "decoder_attn_mask": karl.blocked(~code.extra["needed"], grid.shape[1] * grid.shape[2]),
    }


def _before_quantizer(net, image, grid, wanted, budget):
    plain = nnx.clone(net)
    plain.quantizer = None
    return plain.code(image, grid, wanted, budget).latents


def halting(case: Case) -> dict[str, Any]:
    x, w = case.inputs, {k: jnp.asarray(v) for k, v in case.weights.items()}
    width, code_width = x["latents"].shape[-1], w["pre_quantizer_mlp.weight"].shape[0]
    config = karl.KARLConfig(
        patch=2, encoder=(width, 1, 1), decoder=(width, 1, 1), code_width=code_width, quantize=False, base_width=4,
        base_codes=0, table=2, tokens=8, most=8, halting_width=w["halting_mlp.0.weight"].shape[0],
    )  # fmt: skip
    net = karl.KARL(config, nnx.Rngs(0))
    net.conditions[...] = w["rec_loss_embeddings"]
    for layer, name in ((net.halting.norm, "encoder_ln_post_halt"), (net.norm_out, "encoder_ln_post")):
        layer.scale[...], layer.bias[...] = w[f"{name}.weight"], w[f"{name}.bias"]
    pairs = ((net.narrow, "pre_quantizer_mlp"), (net.halting.up, "halting_mlp.0"), (net.halting.out, "halting_mlp.2"))
    for layer, name in pairs:
        layer.kernel[...], layer.bias[...] = w[f"{name}.weight"].T, w[f"{name}.bias"]
    wanted, bins = jnp.asarray(x["target_l1"])[:, 0], x["bin_values"]
    code = net._read(jnp.asarray(x["latents"]), (1, 1), False, None)
    logits = code.extra["halt_logits"][..., None]
    return {
        "bin_value": bins[np.asarray(karl.error_bin(wanted, tuple(bins)))][:, None, None],
        "condition": net.condition(wanted)[:, None, None],
        "latent_factorized": code.latents,
        "halt_prob": jax.nn.sigmoid(logits),
        "halt_logits": logits,
        "attn_mask": karl.blocked(~code.extra["needed"], int(x["num_img_tokens"]) - 1),
    }


COMPONENTS = {"tiny": tiny, "halting": halting}
TOLERANCE = dict.fromkeys(COMPONENTS, (1e-4, 1e-4))
