"""TiTok: an image as a short 1-D sequence of codes, read out of learned latent tokens; TA-TiTok adds text.

"An Image is Worth 32 Tokens for Reconstruction and Generation", arXiv:2406.07550, NeurIPS 2024. TA-TiTok: arXiv:
2501.07730. The first releases ("legacy": L-32, B-64, S-128, and One-D-Piece) read the encoder's output [K, D] as if it
were [D, K]; their decoder predicts the codes of MaskGIT's VQGAN, which a pixel decoder turns into an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.checkpoints.rules import Rule, linear, norm, table
from jtok.checkpoints.safetensor_files import Weights
from jtok.errors import UserError
from jtok.registry import Claim
from jtok.tokenizers.autoencoder import ConvDecoder, ConvShape
from jtok.tokenizers.autoencoder_names import decoder_names
from jtok.tokenizers.code import Code, Tokenizer
from jtok.tokenizers.quantizers import FSQ, VQ, Gaussian
from jtok.tokenizers.registry import tokenizer
from jtok.tokenizers.released import trunk
from jtok.tokenizers.trunk import Trunk

#: (width, depth, heads) of the published sizes.
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}


@dataclasses.dataclass(frozen=True)
class TiTokConfig:
    """One-stage by default: pixels out. `legacy` with `proxy` codes is the two-stage recipe of the first releases."""

    image: int = 256
    patch: int = 16
    tokens: int = 32
    encoder: tuple[int, int, int] = SIZES["large"]  # width, depth, heads
    decoder: tuple[int, int, int] = SIZES["large"]
    bottleneck: Literal["vq", "kl", "fsq"] = "vq"
    codebook: int = 4096
    code_width: int = 12  # for fsq: the number of `levels`
    levels: tuple[int, ...] = ()
    cosine: bool = True
    beta: float = 0.25
    legacy: bool = False
    proxy: int = 1024  # codes that a legacy decoder predicts
    proxy_width: int = 256
    pixels: bool = False  # legacy: with the pixel decoder (stage 2), else the logits are the output (stage 1)
    pixel_width: int = 128
    pixel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    pixel_blocks: int = 2
    text_length: int = 0  # TA-TiTok: text tokens that the decoder reads (77), of width text_width (768)
    text_width: int = 0
    drop_tail: bool = False  # One-D-Piece: the decoder accepts any prefix
    entropy: float = 0.0  # weight of MAGVIT's entropy loss of a vq bottleneck, at `temperature`
    temperature: float = 1.0
    pass_through: Literal["identity", "rotation"] = "identity"  # gradients past a vq bottleneck
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False  # recompute blocks in the backward pass

    @property
    def side(self) -> int:
        """Number of patches per side."""
        return self.image // self.patch


class Encoder(nnx.Module):
    """[class, patches, latent tokens] -> latents [B,K,d] before the bottleneck."""

    def __init__(self, c: TiTokConfig, rngs: nnx.Rngs):
        self.config = c
        width, depth, heads = c.encoder
        init = nnx.initializers.normal(width**-0.5)
        self.patch = nnx.Linear(3 * c.patch**2, width, dtype=c.dtype, rngs=rngs)
        self.class_token = nnx.Param(init(rngs.params(), (1, width)))
        self.position = nnx.Param(init(rngs.params(), (c.side**2 + 1, width)))
        self.latent_position = nnx.Param(init(rngs.params(), (c.tokens, width)))
        self.norm_in = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.trunk = Trunk(width, depth, heads, rngs, dtype=c.dtype, remat=c.remat)
        self.norm_out = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        outputs = c.code_width * (2 if c.bottleneck == "kl" else 1)
        self.out = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, images: Float[Array, "B H W 3"], latents: Float[Array, "K D"]) -> Float[Array, "B K d"]:
        c, b = self.config, images.shape[0]
        x = self.patch(cut_patches(images, c.patch))
        lead = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (b, 1, x.shape[-1]))
        x = jnp.concatenate([lead, x], 1) + self.position[...].astype(x.dtype)
        latent_tokens = (latents + self.latent_position[...]).astype(x.dtype)
        x = jnp.concatenate([x, jnp.broadcast_to(latent_tokens, (b, *latent_tokens.shape))], 1)
        h = self.norm_out(self.trunk(self.norm_in(x))[:, -c.tokens :]).astype(jnp.float32)
        if c.legacy:  # the released code reinterprets the memory of [K, D] as [D, K]
            h = jnp.swapaxes(h.reshape(b, h.shape[2], h.shape[1]), 1, 2)
        return self.out(h)


class Decoder(nnx.Module):
    """[class, mask tokens, latents, text] -> pixels [B,H,W,3], or logits [B,g,g,proxy] of a legacy model."""

    def __init__(self, c: TiTokConfig, rngs: nnx.Rngs):
        self.config = c
        width, depth, heads = c.decoder
        init = nnx.initializers.normal(width**-0.5)
        self.embed = nnx.Linear(c.code_width, width, dtype=c.dtype, rngs=rngs)
        self.class_token = nnx.Param(init(rngs.params(), (1, width)))
        self.mask_token = nnx.Param(init(rngs.params(), (1, width)))
        self.position = nnx.Param(init(rngs.params(), (c.side**2 + 1, width)))
        self.latent_position = nnx.Param(init(rngs.params(), (c.tokens, width)))
        self.text = nnx.Linear(c.text_width, width, dtype=c.dtype, rngs=rngs) if c.text_length else None
        self.text_position = nnx.Param(init(rngs.params(), (c.text_length, width))) if c.text_length else None
        self.norm_in = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.trunk = Trunk(width, depth, heads, rngs, dtype=c.dtype, remat=c.remat)
        self.norm_out = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        if c.legacy:
            self.hidden = nnx.Linear(width, 2 * width, rngs=rngs)
            self.logits = nnx.Linear(2 * width, c.proxy, rngs=rngs)
        else:
            self.to_pixels = nnx.Linear(width, 3 * c.patch**2, rngs=rngs)
            self.smooth = nnx.Conv(3, 3, (3, 3), padding="SAME", rngs=rngs)

    def __call__(
        self,
        latents: Float[Array, "B K d"],
        count: Int[Array, " B"] | None = None,
        text: Float[Array, "B T E"] | None = None,
    ) -> Array:
        """count: latents of each image that are attended to (default: all). Raises UserError if text is missing."""
        c, (b, k) = self.config, latents.shape[:2]
        if (text is None) != (self.text is None):
            raise UserError(
                f"this decoder reads {c.text_length or 'no'} text tokens: {'give' if self.text else 'leave'} text."
            )
        x = self.embed(latents) + self.latent_position[...][:k].astype(self.config.dtype)
        n = c.side**2
        lead = jnp.concatenate([self.class_token[...], jnp.repeat(self.mask_token[...], n, 0)]) + self.position[...]
        rows = [jnp.broadcast_to(lead.astype(x.dtype), (b, *lead.shape)), x]
        if self.text is not None:
            rows.append(self.text(text) + self.text_position[...].astype(x.dtype))
        valid = None
        if count is not None:
            used = jnp.arange(k) < count[:, None]
            valid = jnp.concatenate([jnp.ones((b, n + 1), bool), used, jnp.ones((b, c.text_length), bool)], 1)
        h = self.trunk(self.norm_in(jnp.concatenate(rows, 1)), valid)
        h = self.norm_out(h[:, 1 : n + 1]).astype(jnp.float32)
        if c.legacy:
            return self.logits(jnp.tanh(self.hidden(h))).reshape(b, c.side, c.side, c.proxy)
        x = self.to_pixels(h).reshape(b, c.side, c.side, c.patch, c.patch, 3)
        return self.smooth(x.transpose(0, 1, 3, 2, 4, 5).reshape(b, c.image, c.image, 3))


_RFID = "ImageNet-1k 256 px rFID"


@tokenizer(
    name="titok",
    title="An Image is Worth 32 Tokens for Reconstruction and Generation",
    paper="arXiv:2406.07550, NeurIPS 2024; TA-TiTok: arXiv:2501.07730",
    family="tokenizer-1d",
    training="one stage on pixels, or two: codes of MaskGIT's VQGAN first",
    counts="fixed",
    generator="MaskGIT",
    idea="learned latent tokens read the image; mask tokens draw it from them",
    toy={"image": 16, "patch": 4, "tokens": 8, "encoder": (32, 1, 2), "decoder": (32, 1, 2)}
    | {"codebook": 32, "code_width": 4},
    claims=(
        Claim("TiTok-L-32", "32 tokens, two stages", 2.21, _RFID),
        Claim("TiTok-B-64", "64 tokens, two stages", 1.70, _RFID),
        Claim("TiTok-S-128", "128 tokens, two stages", 1.71, _RFID),
        Claim("TiTok-BL-64", "64 tokens of 8192 codes, one stage", 2.06, _RFID),
        Claim("TA-TiTok", "32 tokens, VQ", 3.95, _RFID),
        Claim("TA-TiTok", "128 tokens, VQ", 1.53, _RFID),
    ),
)
class TiTok(Tokenizer):
    """Encoder, bottleneck and decoder; a legacy model may have the pixel decoder after them."""

    def __init__(self, config: TiTokConfig, rngs: nnx.Rngs):
        c = self.config = config
        if c.image % c.patch:
            raise UserError(f"an image side of {c.image} pixels is not a multiple of the patch ({c.patch}).")
        if c.bottleneck == "fsq" and len(c.levels) != c.code_width:
            raise UserError(f"FSQ levels {c.levels} need a code_width of {len(c.levels)}, not {c.code_width}.")
        self.lengths = ladder(c.tokens) if c.drop_tail else (c.tokens,)
        self.latent_tokens = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (c.tokens, c.encoder[0])))
        self.encoder, self.decoder = Encoder(c, rngs), Decoder(c, rngs)
        vq = {"entropy_weight": c.entropy, "temperature": c.temperature, "pass_through": c.pass_through}
        make = {
            "kl": Gaussian,
            "fsq": lambda: FSQ(c.levels),
            "vq": lambda: VQ(c.codebook, c.code_width, cosine=c.cosine, beta=c.beta, rngs=rngs, **vq),
        }
        self.quantizer = make[c.bottleneck]()
        if c.legacy and c.pixels:
            self.pixel_codes = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (c.proxy, c.proxy_width)))
            widths = tuple(c.pixel_width * m for m in c.pixel_multipliers)
            shape = ConvShape(c.proxy_width, c.pixel_width, widths, c.pixel_blocks, c.pixel_blocks, style="maskgit")
            self.pixel_decoder = ConvDecoder(shape, c.proxy_width, rngs)

    def latents(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B K d"]:
        """What the bottleneck reads."""
        return self.encoder(images, self.latent_tokens[...])

    def analyse(self, images: Float[Array, "B H W 3"], *, train: bool = False, key: Array | None = None) -> Code:
        """A code of all K latents; `key` draws the latents of a KL bottleneck (default: their means)."""
        z = self.latents(images)
        draw = {"key": key} if self.config.bottleneck == "kl" else {}
        quantized = self.quantizer(z, train=train, **draw)
        return Code(quantized.values, quantized.indices, jnp.full(z.shape[0], z.shape[1], jnp.int32), quantized.losses)

    def from_ids(self, ids: Int[Array, "B K"], count: Int[Array, " B"]) -> Code:
        """The code of ids [B,K]. Raises UserError for a KL bottleneck, which has none."""
        if self.config.bottleneck == "kl":
            raise UserError("a tokenizer with a KL bottleneck has continuous latents, no ids.")
        return Code(self.quantizer.decode(ids), ids, count)

    @property
    def codec_ready(self) -> bool:
        """True with ids and without text."""
        return self.config.bottleneck != "kl" and not self.config.text_length

    def proxy_logits(self, code: Code, text: Float[Array, "B T E"] | None = None) -> Array:
        """What the transformer decoder returns: pixels, or a legacy model's logits over the proxy codes."""
        return self.decoder(code.latents, code.count if self.config.drop_tail else None, text)

    def synthesise(
        self, code: Code, *, key: Array | None = None, text: Float[Array, "B T E"] | None = None
    ) -> Float[Array, "B H W 3"]:
        """Images; raises UserError for a legacy model of stage 1, which predicts proxy codes only."""
        y = self.proxy_logits(code, text)
        if not self.config.legacy:
            return y
        if not self.config.pixels:
            raise UserError("a TiTok of stage 1 predicts proxy codes: load one with the pixel decoder (stage 2).")
        return self.pixel_decoder(jax.nn.softmax(y, -1) @ self.pixel_codes[...])

    def names(self) -> Iterator[Rule]:
        """The released names of all parameters."""
        c = self.config
        yield table("latent_tokens", "latent_tokens")
        yield from linear("encoder.patch_embed", "encoder.patch", how="patch")
        yield from linear("encoder.conv_out", "encoder.out", ones=2)
        yield from linear("decoder.decoder_embed", "decoder.embed")
        yield table("decoder.mask_token", "decoder.mask_token", ones=1)
        for part in ("encoder", "decoder"):
            yield table(f"{part}.class_embedding", f"{part}.class_token")
            yield table(f"{part}.positional_embedding", f"{part}.position")
            yield table(f"{part}.latent_token_positional_embedding", f"{part}.latent_position")
            yield from norm(f"{part}.ln_pre", f"{part}.norm_in")
            yield from norm(f"{part}.ln_post", f"{part}.norm_out")
            yield from trunk(f"{part}.transformer", f"{part}.trunk")
        if c.text_length:
            yield from linear("decoder.text_guidance_proj", "decoder.text")
            yield table("decoder.text_guidance_positional_embedding", "decoder.text_position")
        yield from linear("decoder.ffn.0", "decoder.hidden", ones=2)
        yield from linear("decoder.ffn.2", "decoder.logits", ones=2)
        yield from linear("decoder.ffn.0", "decoder.to_pixels", ones=2)
        yield from linear("decoder.conv_out", "decoder.smooth", how="conv")
        yield table("quantize.embedding.weight", "quantizer.codebook")
        if c.legacy and c.pixels:
            yield table("pixel_quantize.embedding.weight", "pixel_codes")
            yield from decoder_names(self.pixel_decoder, "pixel_decoder", "pixel_decoder", "titok")

    @classmethod
    def released_config(cls, weights: Weights) -> TiTokConfig | None:
        """The config of a release, from its config.json."""
        try:
            return None if weights.config is None else titok_config(weights.config, set(weights.shapes))
        except (KeyError, TypeError):  # of something else
            return None

    def release(self) -> dict[str, Any]:
        """config.json as TiTok's authors write it."""
        return released_config(self.config)


def ladder(most: int) -> tuple[int, ...]:
    """Lengths that a search for a quality tries: all up to 8, then about six for every doubling."""
    steps, n = [], 1
    while n < most:
        steps.append(n)
        n += max(1, n // 8)
    return (*steps, most)


def cut_patches(images: Float[Array, "B H W 3"], patch: int) -> Float[Array, "B N p"]:
    b, h, w, c = images.shape
    if h % patch or w % patch:
        raise UserError(f"images of {h} x {w} pixels do not divide into patches of {patch}: resize or tile them.")
    x = images.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, -1, patch * patch * c)


def titok_config(stated: Mapping[str, Any], tensors: set[str]) -> TiTokConfig:
    """The config of a released TiTok, TA-TiTok or One-D-Piece from its config.json and the names of its tensors."""
    stated = stated.get("config", stated)
    model = stated["model"]["vq_model"]
    kl = model.get("quantize_mode", "vq") == "vae"
    legacy = bool(model.get("is_legacy", True)) and not kl
    text = "decoder.text_guidance_proj.weight" in tensors
    return TiTokConfig(
        image=int(stated["dataset"]["preprocessing"]["crop_size"]),
        patch=model["vit_enc_patch_size"],
        tokens=model["num_latent_tokens"],
        encoder=SIZES[model["vit_enc_model_size"]],
        decoder=SIZES[model["vit_dec_model_size"]],
        bottleneck="kl" if kl else "vq",
        codebook=model["codebook_size"],
        code_width=model["token_size"],
        cosine=bool(model.get("use_l2_norm", False)),
        beta=model.get("commitment_cost", 0.25),
        legacy=legacy,
        pixels=legacy and "pixel_quantize.embedding.weight" in tensors,
        text_length=model.get("text_context_length", 77) if text else 0,
        text_width=model.get("text_embed_dim", 768) if text else 0,
        drop_tail=not model.get("strict_length_assertion", True),
    )


def released_config(c: TiTokConfig) -> dict[str, Any]:
    """config.json of a release. Raises UserError for a bottleneck or a size that none has."""
    sizes = {shape: name for name, shape in SIZES.items()}
    if c.bottleneck == "fsq" or c.encoder not in sizes or c.decoder not in sizes:
        shapes = ", ".join(f"{name} {shape}" for name, shape in SIZES.items())
        raise UserError(
            f"no release has a bottleneck '{c.bottleneck}' with encoder {c.encoder} and decoder {c.decoder}: theirs "
            f"are vq and kl with {shapes} (width, depth, heads); export it as stablehlo."
        )
    model: dict[str, Any] = {
        "codebook_size": c.codebook,
        "token_size": c.code_width,
        "use_l2_norm": c.cosine,
        "commitment_cost": c.beta,
        "vit_enc_model_size": sizes[c.encoder],
        "vit_dec_model_size": sizes[c.decoder],
        "vit_enc_patch_size": c.patch,
        "vit_dec_patch_size": c.patch,
        "num_latent_tokens": c.tokens,
        "quantize_mode": "vae" if c.bottleneck == "kl" else "vq",
        "is_legacy": c.legacy,
        "finetune_decoder": c.pixels,
    }
    if c.text_length:
        model |= {"text_context_length": c.text_length, "text_embed_dim": c.text_width}
    if c.drop_tail:
        model["strict_length_assertion"] = False
    return {
        "model": {"vq_model": model},
        "dataset": {"preprocessing": {"crop_size": c.image, "resize_shorter_edge": c.image}},
    }
