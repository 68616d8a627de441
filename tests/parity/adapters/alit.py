"""ALIT: all rounds of small models on a VQGAN's and a VAE's grid."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jtok.tokenizers.alit import ALIT, ALITConfig
from tests.parity.case import Case
from tests.parity.files import filled

SLUG = "alit"


def core(case: Case) -> dict[str, Any]:
    p, x = case.params, case.inputs
    shapes = {
        side: tuple(p[f"{side}_{part}"] for part in ("width", "num_layers", "num_heads"))
        for side in ("encoder", "decoder")
    }
    config = ALITConfig(
        image=p["img_size"],
        patch=p["patch_size"],
        **shapes,
        tokens=p["num_init_latent_tokens"],
        rounds=p["max_rollout_iters"],
        most=case.weights["decoder.latent_token_positional_embedding"].shape[0],
        codebook=p["vq_codebook_size"],
        code_width=p["vq_token_dim"],
        quantize=p["quantize_latent"],
        base_width=p["base"]["embed_dim"],
        base_codes=p["base"]["codebook"],
        halting=p["dynamic_halting"],
        threshold=p["dynamic_halting_threshold"],
    )
    net = filled(lambda: ALIT(config, nnx.Rngs(0)), case.weights)
    image, grid = (jnp.moveaxis(jnp.asarray(x[name]), 1, -1) for name in ("image", "base_tokens"))
    targets = jnp.asarray(x["gt_indices"]) if "gt_indices" in x else None

    @jax.jit
    def run(image, grid, targets, uniforms):
        out = {}
        for i, one in enumerate(net.rollout(image, grid, targets, uniforms=uniforms)):
            out |= {f"latent_tokens_{i}": one.latent_tokens, f"image_tokens_{i}": one.image_tokens}
            out |= {f"indices_{i}": one.ids, f"quantized_{i}": one.latents, f"decoder_out_{i}": one.guess}
            out[f"image_tokens_after_halting_{i}"] = one.halted
        return out

    return run(image, grid, targets, x.get("bernoulli_u"))


COMPONENTS = {"core": core}
TOLERANCE = {"core": (1e-4, 1e-4)}
