"""FlexTok: an image as an ordered sequence of 1 to 256 codes, and a flow decoder that makes the most of any prefix.

"FlexTok: Resampling Images into 1D Token Sequences of Flexible Length", arXiv:2502.13967, 2025. Registers read the
latents of a frozen VAE under a mask by which register i sees the registers before it; FSQ makes codes of them; a
rectified flow, conditioned on the codes that are kept, generates the VAE's latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.checkpoints.rules import Rule, linear, table
from jtok.errors import UserError
from jtok.models.diffusion.dit import DiT, TimeEmbedder, plain_norm, sincos_grid
from jtok.models.diffusion.flow import Guidance, integrate, noised
from jtok.registry import Claim
from jtok.tokenizers.base_grid import Needs
from jtok.tokenizers.code import Code, Tokenizer
from jtok.tokenizers.masks import packed_mask
from jtok.tokenizers.nested_dropout import draw_counts, fill_tail
from jtok.tokenizers.quantizers import FSQ
from jtok.tokenizers.registry import tokenizer


@dataclasses.dataclass(frozen=True)
class FlexTokConfig:
    """The released d18-d18 by default: width 64 x depth. channels, grid: of the latents (side = grid x patch)."""

    encoder_depth: int = 18
    decoder_depth: int = 18
    encoder_width: int = 1152
    decoder_width: int = 1152
    head_size: int = 64
    channels: int = 16
    patch: int = 2
    grid: int = 16
    registers: int = 256
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    modulations: int = 2  # 2: patches and registers are modulated separately; 1: jointly
    frequencies: int = 256
    steps: int = 20
    guidance: Guidance = Guidance(7.5, projected=True)
    drop: Literal["uniform", "pow2", "uniform_pow2"] = "uniform_pow2"
    drop_all: float = 0.2  # (?) share of images trained without a code, for guidance
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: bool = False  # recompute blocks in the backward pass

    @property
    def side(self) -> int:
        """Rows and columns of the latents."""
        return self.grid * self.patch


class RegisterEncoder(nnx.Module):
    """Latents -> what the quantizer reads, [B,R,levels]."""

    def __init__(self, c: FlexTokConfig, rngs: nnx.Rngs):
        self.config = c
        self.patch = nnx.Linear(c.channels * c.patch**2, c.encoder_width, dtype=c.dtype, rngs=rngs)
        self.position = nnx.Param(jnp.asarray(sincos_grid(c.grid, c.grid, c.encoder_width)))
        start = jax.random.normal(rngs.params(), (c.registers, c.encoder_width))
        self.registers = nnx.Param(0.02 * start)
        self.trunk = DiT(c.encoder_width, c.encoder_depth, c.head_size, 0, rngs, c.dtype, c.remat)
        self.out = nnx.Linear(c.encoder_width, len(c.levels), rngs=rngs)

    def __call__(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B R d"]:
        c = self.config
        x = self.patch(cut(latents, c.patch)) + _rows(self.position[...])
        registers = jnp.broadcast_to(self.registers[...].astype(x.dtype), (x.shape[0], *self.registers.shape))
        n = x.shape[1]
        mask = packed_mask([n + c.registers], "causal_last", prefixes=[n])
        x = self.trunk(jnp.concatenate([x, registers], 1), mask)[:, n:]
        return self.out(plain_norm(x).astype(jnp.float32))


class FlowDecoder(nnx.Module):
    """(noised latents, t, codes) -> velocity of the latents."""

    def __init__(self, c: FlexTokConfig, rngs: nnx.Rngs):
        self.config = c
        width = c.decoder_width
        self.embed = nnx.Linear(len(c.levels), width, dtype=c.dtype, rngs=rngs)
        init = nnx.initializers.normal(0.02)
        self.register_position = nnx.Param(init(rngs.params(), (width, c.registers)))
        self.dropped = nnx.Param(init(rngs.params(), (width,)))
        self.null = nnx.Param(init(rngs.params(), (width,)))
        self.patch = nnx.Linear(c.channels * c.patch**2, width, dtype=c.dtype, rngs=rngs)
        self.position = nnx.Param(jnp.asarray(sincos_grid(c.grid, c.grid, width)))
        self.time = TimeEmbedder(width, rngs, c.frequencies)
        self.trunk = DiT(width, c.decoder_depth, c.head_size, c.modulations, rngs, c.dtype, c.remat)
        zero = nnx.initializers.zeros_init()
        self.modulate = nnx.Linear(width, 2 * width, kernel_init=zero, rngs=rngs)
        self.out = nnx.Linear(width, c.channels * c.patch**2, kernel_init=zero, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B h w C"], t: Float[Array, " B"], code: Code, null: Array | bool = False
    ) -> Float[Array, "B h w C"]:
        """null [B] or one bool: images whose code is dropped entirely."""
        c = self.config
        conditions = self.embed(code.latents) + self.register_position[...].T.astype(c.dtype)
        conditions = fill_tail(conditions, code.count, self.dropped[...])  # dropped ones have no position
        null = jnp.broadcast_to(jnp.asarray(null), (x.shape[0],))[:, None, None]
        conditions = jnp.where(null, self.null[...].astype(conditions.dtype), conditions)
        patches = self.patch(cut(x, c.patch)) + _rows(self.position[...])
        n, time = patches.shape[1], self.time(t)
        y = self.trunk(jnp.concatenate([patches, conditions], 1), None, time.astype(c.dtype), (n, c.registers))[:, :n]
        shift, scale = jnp.split(self.modulate(jax.nn.silu(time))[:, None], 2, -1)
        return paste(self.out(plain_norm(y).astype(jnp.float32) * (1 + scale) + shift), c.side, c.patch)


@tokenizer(
    name="flextok",
    title="FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
    paper="arXiv:2502.13967",
    family="tokenizer-1d",
    training="one stage: rectified flow under nested dropout",
    counts="prefix",
    generator="autoregressive",
    idea="ordered registers; a flow draws the image from any prefix of them",
    toy={"encoder_depth": 1, "decoder_depth": 1, "encoder_width": 32, "decoder_width": 32, "head_size": 16}
    | {"channels": 3, "patch": 4, "grid": 4, "registers": 8, "steps": 1, "frequencies": 32, "levels": (8, 5, 5)},
    claims=(
        Claim("FlexTok", "8 to 128 tokens, at most", 2.0, "ImageNet-1k 256 px gFID"),
        Claim("FlexTok", "256 tokens, as measured for GPSToken", 4.02, "ImageNet-1k 256 px rFID"),
        Claim("FlexTok", "256 tokens, as measured for GPSToken", 17.69, "ImageNet-1k 256 px PSNR (dB)"),
    ),
)
class FlexTok(Tokenizer):
    """`vae` turns images [B,H,W,3] in [0,1] into scaled latents and back (`encode`, `decode`); without one the
    tokenizer works on pixels in [-1,1] themselves, with 3 channels."""

    base_slot = "vae"
    beside = ("vae.",)

    def __init__(self, config: FlexTokConfig, rngs: nnx.Rngs, vae: Any = None):
        c = self.config = config
        if vae is None and c.channels not in (3, 4, 8, 16):
            raise UserError(f"FlexTok without a VAE reads pixels: channels must be 3, not {c.channels}.")
        self.lengths = tuple(range(1, c.registers + 1))
        self.vae = vae
        self.encoder, self.decoder = RegisterEncoder(c, rngs), FlowDecoder(c, rngs)

    @property
    def image_side(self) -> int:
        """Side of the latents times the VAE's stride."""
        return self.config.side * (1 if self.vae is None else self.vae.stride)

    def check_images(self, images: Array) -> None:
        """Raises UserError for images of another size or dtype, and if the VAE is missing."""
        self._check_vae()
        super().check_images(images)

    @property
    def base_needs(self) -> Needs:
        """A VAE of these channels."""
        return Needs(self.config.channels, None, 0)

    @property
    def quantizer(self) -> FSQ:
        """FSQ in the released variant."""
        return FSQ(self.config.levels, "atanh")

    def latents(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """What it encodes: the VAE's latents, or pixels in [-1,1]. Raises UserError if the VAE is missing."""
        self._check_vae()
        return 2 * images - 1 if self.vae is None else self.vae.encode(images)

    def code(self, latents: Float[Array, "B h w C"]) -> Code:
        """The code of all registers."""
        quantized = self.quantizer(self.encoder(latents))
        return Code(quantized.values, quantized.indices, jnp.full(latents.shape[0], self.config.registers, jnp.int32))

    def analyse(self, images: Float[Array, "B H W 3"], *, train: bool = False, key: Array | None = None) -> Code:
        """A code of all R registers."""
        return self.code(self.latents(images))

    def from_ids(self, ids: Int[Array, "B R"], count: Int[Array, " B"]) -> Code:
        """The code of ids; those after `count` may be any valid id, such as 0."""
        return Code(self.quantizer.decode(ids), ids, count)

    def sample(
        self, code: Code, noise: Float[Array, "B h w C"], *, steps: int | None = None, guidance: Guidance | None = None
    ) -> Float[Array, "B h w C"]:
        """Latents made from noise by the flow."""
        steps, guidance = steps or self.config.steps, guidance or self.config.guidance
        return integrate(
            lambda x, t: self.decoder(x, t, code),
            noise,
            steps,
            without=(lambda x, t: self.decoder(x, t, code, True)) if guidance.scale != 1 else None,
            guidance=guidance,
        )

    def synthesise(self, code: Code, *, key: Array | None = None) -> Float[Array, "B H W 3"]:
        """Images; `key` draws the noise (default: a fixed one)."""
        self._check_vae()
        c, b = self.config, code.latents.shape[0]
        noise = jax.random.normal(jax.random.key(0) if key is None else key, (b, c.side, c.side, c.channels))
        latents = self.sample(code, noise)
        return (latents + 1) / 2 if self.vae is None else self.vae.decode(latents)

    def _check_vae(self) -> None:
        if self.vae is None and self.config.channels != 3:
            raise UserError("this FlexTok was loaded without its VAE: give its file as the base.")

    def loss(self, images: Float[Array, "B H W 3"], key: Array) -> dict[str, Array]:
        """Rectified flow under nested dropout: `flow`, and `total`."""
        c, (one, two, three) = self.config, jax.random.split(key, 3)
        x = self.latents(images)
        code = self.code(x).take(draw_counts(one, x.shape[0], c.registers, c.drop))
        null = jax.random.bernoulli(two, c.drop_all, (x.shape[0],))
        x_t, t, target = noised(x, three)
        flow = jnp.square(self.decoder(x_t, t, code, null) - target).mean()
        return {"flow": flow, "total": flow}

    def names(self) -> Iterator[Rule]:
        """The released names of all parameters but the VAE's."""
        e, d = "encoder.module_dict", "decoder.module_dict"
        yield from linear(f"{e}.enc_patch_emb.patch_proj", "encoder.patch")
        yield table(f"{e}.enc_posemb_module.posembs", "encoder.position")
        yield table(f"{e}.enc_register_module.registers", "encoder.registers")
        yield from linear(f"{e}.enc_to_latents.proj", "encoder.out")
        yield from linear(f"{d}.dec_from_latents.proj", "decoder.embed")
        yield table(f"{d}.dec_registers_posemb_module.posembs", "decoder.register_position")
        yield table(f"{d}.dec_nested_dropout.dropout_mask_token", "decoder.dropped")
        yield table(f"{d}.dec_latent_dropout.nullcond", "decoder.null")
        yield from linear(f"{d}.dec_noise_patch_emb.patch_proj", "decoder.patch")
        yield table(f"{d}.dec_patches_posemb_module.posembs", "decoder.position")
        yield from linear(f"{d}.dec_time_embedder.mlp.0", "decoder.time.up")
        yield from linear(f"{d}.dec_time_embedder.mlp.2", "decoder.time.out")
        yield from linear(f"{d}.dec_to_patches.adaLN_modulation.1", "decoder.modulate")
        yield from linear(f"{d}.dec_to_patches.proj", "decoder.out")
        for ours, theirs in (("encoder", f"{e}.enc_transformer"), ("decoder", f"{d}.dec_transformer")):
            o, t = f"{ours}.trunk.blocks", theirs + ".blocks.{}"
            for one, other in (("q", "wq"), ("k", "wk"), ("v", "wv"), ("out", "proj")):
                yield from linear(f"{t}.attn.{other}", f"{o}.{one}", bias=False)
            for one, other in (("gate", "fc1"), ("down", "fc2"), ("up", "fc3")):
                yield from linear(f"{t}.mlp.{other}", f"{o}.{one}", bias=False)
            yield from linear(f"{t}.adaLN_modulation.1", f"{o}.modulate")


def cut(x: Float[Array, "B h w C"], patch: int) -> Float[Array, "B N p"]:
    """Patches row by row, each in the order (row, column, channel)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, -1, patch * patch * c)


def paste(patches: Float[Array, "B N p"], side: int, patch: int) -> Float[Array, "B h w C"]:
    """Inverse of `cut` for a square image."""
    b, g = patches.shape[0], side // patch
    x = patches.reshape(b, g, g, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, side, side, -1)


def _rows(position: Float[Array, "D h w"]) -> Float[Array, "N D"]:
    return position.reshape(position.shape[0], -1).T
