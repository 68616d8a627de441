"""TiTok: small models under their released names, the quantizer with gradients, MaskGIT's sampler, both generators."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jtok.tokenizers import maskgit
from jtok.tokenizers.generator import Generator, GeneratorConfig
from jtok.tokenizers.quantizers import VQ
from jtok.tokenizers.released import fill
from jtok.tokenizers.titok import TiTok, TiTokConfig
from tests.parity.case import Case
from tests.parity.files import as_weights, filled

SLUG = "titok"


def config(case: Case, **changes: Any) -> TiTokConfig:
    """The config that a golden's params state."""
    p = case.params
    c = p["config"]["model"]["vq_model"]
    shape = (p["width"], p["layers"], p["heads"])
    weights, pixels = case.weights, c["finetune_decoder"]
    ups = {name.split(".")[2] for name in weights if name.startswith("pixel_decoder.up.")}
    options = {
        "image": p["config"]["dataset"]["preprocessing"]["crop_size"],
        "patch": c["vit_enc_patch_size"],
        "tokens": c["num_latent_tokens"],
        "encoder": shape,
        "decoder": shape,
        "bottleneck": "kl" if c.get("quantize_mode") == "vae" else "vq",
        "codebook": c["codebook_size"],
        "code_width": c["token_size"],
        "cosine": c["use_l2_norm"],
        "beta": c["commitment_cost"],
        "legacy": c.get("is_legacy", True),
        "proxy": p["decoder_logit_channels"],
        "pixels": pixels,
        "text_length": c.get("text_context_length", 0),
        "text_width": c.get("text_embed_dim", 0),
    }
    if pixels:
        options |= {
            "proxy_width": weights["pixel_quantize.embedding.weight"].shape[1],
            "pixel_multipliers": (1,) * len(ups),
        }
        options |= {"pixel_width": weights["pixel_decoder.conv_out.weight"].shape[1], "pixel_blocks": 1}
    return TiTokConfig(**(options | changes))


def tokenizer(case: Case, **changes: Any) -> TiTok:
    return filled(lambda: TiTok(config(case, **changes), nnx.Rngs(0)), case.weights)


def columns(x: jax.Array) -> jax.Array:
    """[B,K,d] as the release lays it out, [B,d,1,K]."""
    return jnp.swapaxes(x, 1, 2)[:, :, None]


def first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)


def model(case: Case) -> dict[str, Any]:
    net, x = tokenizer(case), case.inputs
    image = jnp.moveaxis(jnp.asarray(x["image"]), 1, -1)
    if net.config.bottleneck == "kl":
        return jax.jit(functools.partial(vae, net))(image)
    tokens = jnp.asarray(x["tokens"])[:, 0].astype(jnp.int32)
    return jax.jit(functools.partial(_coded, net))(image, tokens, x.get("text"))


def _coded(net: TiTok, image: jax.Array, tokens: jax.Array, text: jax.Array | None) -> dict[str, Any]:
    code = net.analyse(image, train=True)
    given = net.from_ids(tokens, code.count)
    full = (lambda code: net.synthesise(code, text=text)) if not net.config.legacy or net.config.pixels else None
    draw = full or net.proxy_logits
    return {
        "z": columns(net.encoder(image, net.latent_tokens[...])),
        "z_quantized": columns(code.latents),
        "indices": code.ids[:, None],
        "quantizer_loss": _unless_frozen(net, code.losses["total"]),
        "commitment_loss": _unless_frozen(net, net.config.beta * code.losses["commitment"]),
        "codebook_loss": _unless_frozen(net, code.losses["codebook"]),
        "decoded": first(draw(code)),
        "decoded_tokens": first(draw(given)),
        "proxy_logits": first(net.proxy_logits(code)) if net.config.legacy else None,
    }


def _unless_frozen(net: TiTok, loss: jax.Array) -> jax.Array:
    """Stage 2 trains the decoder only, and the release multiplies the quantizer's losses by zero."""
    return loss * 0 if net.config.pixels else loss


def vae(net: TiTok, image: jax.Array) -> dict[str, Any]:
    z = net.encoder(image, net.latent_tokens[...])
    mean, log_variance = net.quantizer.split(z)
    kl = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum(-1)
    code = net.analyse(image)
    parts = {"mean": columns(mean), "logvar": columns(log_variance), "kl": kl, "z": columns(z)}
    return parts | {"decoded": first(net.synthesise(code))}


def quantizer(case: Case) -> dict[str, Any]:
    p, w = case.params, jnp.swapaxes(case.inputs["cotangent"][:, :, 0], 1, 2)
    z, book = jnp.swapaxes(jnp.asarray(case.inputs["z"])[:, :, 0], 1, 2), jnp.asarray(case.inputs["embedding"])
    vq = VQ(*book.shape, cosine=p["use_l2_norm"], beta=p["commitment_cost"], rngs=nnx.Rngs(0))
    graph, _ = nnx.split(vq)

    def run(z, book):
        return nnx.merge(graph, nnx.State({"codebook": nnx.Param(book)}))(z, train=True)

    result = run(z, book)
    of_loss = jax.grad(lambda z, book: run(z, book).losses["total"], (0, 1))(z, book)
    return {
        "z_quantized": columns(result.values),
        "indices": result.indices[:, None],
        "quantizer_loss": result.losses["total"],
        "commitment_loss": p["commitment_cost"] * result.losses["commitment"],
        "codebook_loss": result.losses["codebook"],
        "grad_z_of_dot": columns(jax.grad(lambda z: (run(z, book).values * w).sum())(z)),
        "grad_z_of_loss": columns(of_loss[0]),
        "grad_embedding_of_loss": of_loss[1],
    }


def sampler(case: Case) -> dict[str, Any]:
    p, x = case.params, case.inputs
    table, labels = jnp.asarray(x["table"]), jnp.asarray(x["cond_table"])

    def network(ids, condition):
        label = labels[p["num_classes"]] if condition is None else labels[condition][:, None]
        return table[ids] + 0.5 * table[jnp.roll(ids, 1, 1)] + x["pos"] + label

    schedule = maskgit.Schedule(
        p["num_sample_steps"],
        p["randomize_temperature"],
        p["guidance_scale"],
        p["guidance_decay"],
        p["guidance_scale_pow"],
        p["softmax_temperature_annealing"],
    )
    condition, uniforms = jnp.asarray(x["condition"]), (jnp.asarray(x["u_logits"]), jnp.asarray(x["u_conf"]))
    length, size = x["pos"].shape[0], p["mask_token_id"]
    ids, seen = maskgit.sample(network, condition, length, size, schedule, uniforms=uniforms, as_released=True)
    return {"ids": ids, "ids_per_step": jnp.stack(seen)}


def generator(case: Case) -> dict[str, Any]:
    g = case.params["model"]["generator"]
    net = Generator(
        GeneratorConfig(
            body="vit" if "model.embeddings.word_embeddings.weight" in case.weights else "uvit",
            codebook=case.params["model"]["vq_model"]["codebook_size"],
            length=g["image_seq_len"],
            classes=g["condition_num_classes"],
            width=g["hidden_size"],
            depth=g["num_hidden_layers"],
            heads=g["num_attention_heads"],
            mlp=g["intermediate_size"],
        ),
        nnx.Rngs(0),
    )
    net = fill(net, as_weights(case.weights), net.names())
    ids, condition = jnp.asarray(case.inputs["ids"]), jnp.asarray(case.inputs["condition"])
    return {"logits_cond": net(ids, condition), "logits_uncond": net(ids, None)}


COMPONENTS = {"model": model, "model-vae": model, "quantizer": quantizer, "maskgit": sampler, "generator": generator}
TOLERANCE = dict.fromkeys(COMPONENTS, (1e-4, 1e-4))
