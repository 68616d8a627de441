"""FlexTok: small models from latents to velocities and samples, and the parts they are made of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jtok.models.diffusion.dit import sincos_grid, time_features
from jtok.models.diffusion.flow import Guidance
from jtok.tokenizers.flextok import FlexTok, FlexTokConfig
from jtok.tokenizers.masks import packed_mask
from jtok.tokenizers.nested_dropout import fill_tail, round_up_to_power
from jtok.tokenizers.quantizers import FSQ
from tests.parity.case import Case, difference
from tests.parity.files import filled

SLUG = "flextok"


def tiny(case: Case) -> dict[str, Any]:
    p = case.params
    config = FlexTokConfig(
        encoder_depth=p["depth"],
        decoder_depth=p["depth"],
        encoder_width=p["dim"],
        decoder_width=p["dim"],
        head_size=p["head_dim"],
        channels=p["vae_channels"],
        patch=p["patch"],
        grid=p["grid"],
        registers=p["registers"],
        levels=tuple(p["fsq_levels"]),
        modulations=p["adaLN_expansion"],
        frequencies=p["frequency_embedding_size"],
    )
    net = filled(lambda: FlexTok(config, nnx.Rngs(0)), case.weights)
    last, first = (lambda x: jnp.moveaxis(jnp.asarray(x), 1, -1)), (lambda x: jnp.moveaxis(x, -1, 1))
    latents, noise, t = last(case.inputs["vae_latents"]), last(case.inputs["noise"]), case.inputs["timesteps"]
    z, code = net.encoder(latents), net.code(latents)
    n = p["grid"] ** 2
    a = p["apg"]
    apg = Guidance(a["scale"], True, a["eta"], a["norm_threshold"], a["momentum"])
    out = {
        "latents": z,
        "bounded": net.quantizer.bound(z),
        "quants": code.latents,
        "token_ids": code.ids,
        "encoder_mask": packed_mask([n + p["registers"]], "causal_last", prefixes=[n]),
        "velocity_null": first(net.decoder(noise, t, code, True)),
    }
    for name in case.outputs:
        head, _, count = name.rpartition("_k")
        if head == "velocity":
            out[name] = first(net.decoder(noise, t, code.take(int(count))))
        elif head.startswith("sample"):
            how = apg if head.endswith("apg") else Guidance(p["cfg"])
            out[name] = first(net.sample(code.take(int(count)), noise, steps=p["steps"], guidance=how))
    return out


def parts(case: Case) -> dict[str, Any]:
    p, x = case.params, {k: jnp.asarray(v) for k, v in case.inputs.items()}
    fsq = FSQ(tuple(p["levels"]), "atanh")
    result = fsq(x["z"])
    lengths, padded, prefixes = p["seq_lens"], p["padded_len"], p["prefix_lens"]
    out = {
        "bounded": fsq.bound(x["z"]),
        "quant": result.values,
        "tokens": result.indices,
        "grad_z": jax.grad(lambda z: (fsq(z).values * x["cotangent"]).sum())(x["z"]),
        "embedding": fsq.decode(x["indices"]),
        "mask_full": packed_mask(lengths, padded=padded),
        "mask_causal": packed_mask(lengths, "causal", padded=padded),
        "mask_causal_last": packed_mask(lengths, "causal_last", prefixes=prefixes, padded=padded),
        "nested_dropout": fill_tail(x["nd_x"], x["nd_keep"], x["nd_mask_token"]),
        "timestep_embedding": time_features(x["timesteps"], case.outputs["timestep_embedding"].shape[1]),
    }
    for name in case.outputs:
        if name.startswith("posemb_2d"):
            height, width, dim = (int(part[1:]) for part in name.split("_")[2:])
            out[name] = sincos_grid(height, width, dim)[None]
        elif name.startswith("uniform_pow2_of_1_to_"):
            out[name] = round_up_to_power(jnp.arange(1, int(name.rsplit("_", 1)[1]) + 1))
    return out


COMPONENTS = {"tiny": tiny, "parts": parts}
TOLERANCE = {"tiny": (1e-4, 1e-4), "parts": (1e-4, 1e-4)}


def compare(case: Case, got: dict[str, Any]) -> float:
    """Samples are allowed ten times the error of a single call."""
    rtol, atol = TOLERANCE[case.component]
    factor = {name: 10 if name.startswith("sample") else 1 for name in case.outputs}
    return max(difference(n, got[n], want, rtol * factor[n], atol * factor[n]) for n, want in case.outputs.items())
