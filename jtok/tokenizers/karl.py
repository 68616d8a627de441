"""KARL: one pass that encodes an image to a target error, and marks the tokens that it did not need.

"Single-pass Adaptive Image Tokenization for Minimum Program Search", Duggal et al., 2025. The encoder reads the target
L1 error as a condition; a halting head marks tokens that are not needed. They are masked out of the decoder, wherever
they are in the sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jtok.checkpoints.rules import Rule, linear, norm, table
from jtok.errors import UserError
from jtok.tokenizers.alit import grid_decoder_names
from jtok.tokenizers.base_grid import BaseTokenizer, GuessHead, Needs, as_image, guessed_code
from jtok.tokenizers.code import Code, Tokenizer, check_float
from jtok.tokenizers.quantizers import VQ
from jtok.tokenizers.registry import tokenizer
from jtok.tokenizers.released import trunk
from jtok.tokenizers.titok import cut_patches
from jtok.tokenizers.trunk import Trunk

#: Errors that the encoder can be asked for (mean absolute difference of pixels in [0, 1] (?)).
BINS = (
    *(0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.09, 0.1),
    *(0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.38),
)
HALTED = 0.75


@dataclasses.dataclass(frozen=True)
class KARLConfig:
    """As `ALITConfig`; table: side of the position tables, read at the nearest place; most: number of latent tokens."""

    patch: int = 16
    encoder: tuple[int, int, int] = (1024, 8, 8)
    decoder: tuple[int, int, int] = (1024, 8, 8)
    tokens: int = 256  # the usual budget
    most: int = 512
    table: int = 64
    codebook: int = 4096
    code_width: int = 12
    quantize: bool = True
    base_width: int = 256
    base_codes: int = 1024
    halting_width: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the blocks
    remat: bool = False  # recompute blocks in the backward pass


def error_bin(error: Float[Array, "..."], bins: tuple[float, ...] = BINS) -> Int[Array, "..."]:
    """Index of the smallest bin that is at least `error` (compared in float32), the last if there is none."""
    edges = jnp.asarray(np.asarray(bins, np.float32))
    return jnp.minimum(jnp.searchsorted(edges, jnp.asarray(error, jnp.float32)), len(bins) - 1)


def blocked(halted: Bool[Array, "B T"], grid: int) -> Bool[Array, "B L L"]:
    """Pairs of [grid, latents] masked from each other in the decoder: where either is halted, except the diagonal."""
    out = jnp.pad(halted, ((0, 0), (grid, 0)))
    either = out[:, :, None] | out[:, None]
    return either & ~jnp.eye(out.shape[1], dtype=bool)


def _table(position: Float[Array, "D S S"], rows: int, columns: int) -> Float[Array, "N D"]:
    """A position table at the nearest places of a grid."""
    side = position.shape[1]
    y, x = (jnp.arange(n) * side // n for n in (rows, columns))
    return position[:, y][:, :, x].reshape(position.shape[0], -1).T


class HaltingHead(nnx.Module):
    """Latent tokens -> logits that they are not needed [B,T]."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.up, self.out = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, 1, rngs=rngs)

    def __call__(self, h: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        return self.out(jnp.tanh(self.up(self.norm(h))))[..., 0]


class GridDecoder(nnx.Module):
    """[mask tokens, latents] -> a prediction of the base's code at every place; halted latents are masked."""

    def __init__(self, c: KARLConfig, rngs: nnx.Rngs):
        width, depth, heads = c.decoder
        init = nnx.initializers.normal(width**-0.5)
        self.dtype = c.dtype
        self.embed = nnx.Linear(c.code_width, width, rngs=rngs)
        self.latent_position = nnx.Param(init(rngs.params(), (c.most, width)))
        self.mask_token = nnx.Param(init(rngs.params(), (1, width)))
        self.position = nnx.Param(init(rngs.params(), (width, c.table, c.table)))
        self.norm_in = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.trunk = Trunk(width, depth, heads, rngs, dtype=c.dtype, remat=c.remat)
        self.norm_out = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.head = GuessHead(width, c.base_codes or c.base_width, rngs)

    def __call__(self, latents, grid: tuple[int, int], kept: Bool[Array, "B T"] | None = None) -> Float[Array, "B N C"]:
        b, t = latents.shape[:2]
        x = self.embed(latents) + self.latent_position[...][:t]
        lead = self.mask_token[...] + _table(self.position[...], *grid)
        n = lead.shape[0]
        # in the paper a halted token attends to itself alone; its output is never read
        valid = None if kept is None else jnp.concatenate([jnp.ones((b, n), bool), kept], 1)
        rows = jnp.concatenate([jnp.broadcast_to(lead, (b, *lead.shape)), x], 1)
        return self.head(self.norm_out(self.trunk(self.norm_in(rows).astype(self.dtype), valid)[:, :n]))


@tokenizer(
    name="karl",
    title="Single-pass Adaptive Image Tokenization for Minimum Program Search",
    paper="Duggal et al., 2025",
    family="tokenizer-1d",
    training="two stages: codes of the base, then pixels",
    counts="adaptive",
    generator="none",
    idea="one pass to a wanted error; a halting head drops tokens",
    toy={"patch": 4, "encoder": (32, 1, 2), "decoder": (32, 1, 2), "tokens": 6, "most": 8, "table": 4}
    | {"halting_width": 8, "codebook": 32, "code_width": 4, "base_width": 3, "base_codes": 0},
)
class KARL(Tokenizer):
    """`base` is the frozen 2-D tokenizer; without it the tokenizer encodes given grids (`code`)."""

    prefix = False
    base_slot = "base"
    beside = ("base_tokenizer.", "gan_losses.")

    def __init__(self, config: KARLConfig, rngs: nnx.Rngs, base: BaseTokenizer | None = None):
        c, (width, depth, heads) = config, config.encoder
        if c.tokens > c.most:
            raise UserError(f"a budget of {c.tokens} tokens exceeds the {c.most} latent tokens.")
        self.config, self.base = c, base
        self.lengths = (c.tokens,)
        init = nnx.initializers.normal(width**-0.5)
        self.patch = nnx.Linear(3 * c.patch**2, width - c.base_width, rngs=rngs)
        self.position = nnx.Param(init(rngs.params(), (width, c.table, c.table)))
        self.latent_tokens = nnx.Param(init(rngs.params(), (c.most, width)))
        self.conditions = nnx.Param(init(rngs.params(), (len(BINS), width)))
        self.norm_in, self.norm_out = (nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.trunk = Trunk(width, depth, heads, rngs, dtype=c.dtype, remat=c.remat)
        self.halting = HaltingHead(width, c.halting_width, rngs)
        self.narrow = nnx.Linear(width, c.code_width, rngs=rngs)
        self.quantizer = VQ(c.codebook, c.code_width, cosine=True, rngs=rngs) if c.quantize else None
        self.decoder = GridDecoder(c, rngs)
        shape = (c.base_codes, c.base_width)
        self.base_codebook = nnx.Param(init(rngs.params(), shape)) if c.base_codes else None

    @property
    def longest(self) -> int:
        """The largest budget."""
        return self.config.most

    @property
    def image_side(self) -> int:
        """Side of the paper's images, 16 patches; any multiple of the patch is accepted."""
        return 16 * self.config.patch

    @property
    def base_needs(self) -> Needs:
        """A base with one grid place per patch, and the codebook that the tokenizer predicts."""
        return Needs(self.config.base_width, self.config.patch, self.config.base_codes)

    def check_images(self, images: Array) -> None:
        """Raises UserError for anything but float [B,H,W,3] with sides that patches divide."""
        patch, shape = self.config.patch, images.shape
        if images.ndim != 4 or shape[3] != 3 or shape[1] % patch or shape[2] % patch:
            raise UserError(f"images of shape {shape} are given; sides must be multiples of {patch}: [B, H, W, 3].")
        check_float(images)

    def bits(self, count: float, length: int, each: float | None = None) -> float:
        """As for other tokenizers, plus one bit per token that says whether it is kept."""
        return super().bits(count, length, each) + length

    def condition(self, error: Float[Array, " B"]) -> Float[Array, "B D"]:
        """Embedding of the target error."""
        return self.conditions[...][error_bin(error)]

    def code(
        self,
        images: Float[Array, "B H W 3"],
        grid: Float[Array, "B g g E"],
        error: Float[Array, " B"],
        tokens: int | None = None,
        *,
        train: bool = False,
        budget: Int[Array, " B"] | None = None,
    ) -> Code:
        """A code of `tokens` latents; `extra` has halt_logits and needed [B,T], and count is how many are needed.

        budget: number of latents of each image; later ones are ignored (not needed, and left out of the losses)."""
        c, (b, rows, columns) = self.config, grid.shape[:3]
        t = tokens or c.tokens
        x = jnp.concatenate([self.patch(cut_patches(images, c.patch)), grid.reshape(b, rows * columns, -1)], -1)
        x = x + _table(self.position[...], rows, columns)
        latents = jnp.broadcast_to(self.latent_tokens[...][:t], (b, t, x.shape[-1]))
        x = jnp.concatenate([self.condition(error)[:, None], x, latents], 1)
        within = valid = None
        if budget is not None:
            within = jnp.arange(t) < budget[:, None]
            valid = jnp.concatenate([jnp.ones((b, x.shape[1] - t), bool), within], 1)
        h = self.trunk(self.norm_in(x).astype(c.dtype), valid)[:, -t:].astype(jnp.float32)
        return self._read(h, (rows, columns), train, within)

    def _read(
        self, h: Float[Array, "B T D"], grid: tuple[int, int], train: bool, within: Bool[Array, "B T"] | None
    ) -> Code:
        logits = self.halting(h)
        z = self.narrow(self.norm_out(h))
        values, ids, losses = z, None, {}
        if self.quantizer is not None:
            quantized = self.quantizer(z, train=train, where=within)
            values, ids, losses = quantized.values, quantized.indices, quantized.losses
        needed = jax.nn.sigmoid(logits) <= HALTED
        needed = needed if within is None else needed & within
        extra = {"halt_logits": logits, "needed": needed, "grid": jnp.zeros(grid, jnp.int8)}
        return Code(values, ids, needed.sum(1, dtype=jnp.int32), losses, extra)

    def guess(self, code: Code) -> Float[Array, "B N C"]:
        """The prediction of the base's code from the needed tokens."""
        return self.decoder(code.latents, code.extra["grid"].shape, code.extra["needed"])

    def analyse(
        self, images, *, train: bool = False, key: Array | None = None, error: float | Array = 0.05, tokens=None
    ) -> Code:
        """The code for a target error, usually 0.03 to 0.07."""
        if self.base is None:
            raise UserError(
                "KARL codes the grid of a base tokenizer: give its file as the base, or call `code` with a grid."
            )
        wanted = jnp.broadcast_to(jnp.asarray(error, jnp.float32), (images.shape[0],))
        return self.code(images, self.base.encode(images), wanted, tokens, train=train)

    def encode(self, images, tokens: int | None = None, *, quality: float | None = None, key: Array | None = None):
        """tokens: the budget. quality: PSNR in dB, converted to the L1 error of Gaussian noise of that PSNR (ours)."""
        self.check_request(images, tokens, quality)
        error = 0.05 if quality is None else 10 ** (-quality / 20) * (2 / np.pi) ** 0.5
        return self.analyse(images, error=error, tokens=tokens)

    def synthesise(self, code: Code, *, key: Array | None = None) -> Float[Array, "B H W 3"]:
        """Images, decoded by the base tokenizer."""
        book = None if self.base_codebook is None else self.base_codebook[...]
        return as_image(self.base, guessed_code(self.guess(code), book))

    def halting_loss(self, code: Code, surplus: Int[Array, " B"] | int) -> Float[Array, ""]:
        """Binary cross-entropy of the halting head: the last `surplus` tokens are not needed, the others are."""
        logits = code.extra["halt_logits"]
        t = logits.shape[1]
        target = jnp.arange(t) >= t - jnp.reshape(jnp.asarray(surplus), (-1, 1))
        return optax.losses.sigmoid_binary_cross_entropy(logits, target.astype(jnp.float32)).mean()

    def names(self) -> Iterator[Rule]:
        """The released names of all parameters."""
        for ours, theirs in (
            ("position", "encoder_positional_embedding"),
            ("decoder.position", "decoder_positional_embedding"),
            ("decoder.mask_token", "decoder_mask_token"),
            ("decoder.latent_position", "decoder_latent_tokens_timestep_embed"),
            ("latent_tokens", "latent_tokens"),
            ("conditions", "rec_loss_embeddings"),
            ("quantizer.codebook", "quantize.embedding.weight"),
            ("base_codebook", "base_tokenizer.vqgan.quantize.embedding.weight"),
        ):
            yield table(theirs, ours)
        yield from norm("encoder_ln_pre", "norm_in")
        yield from norm("encoder_ln_post", "norm_out")
        yield from norm("encoder_ln_post_halt", "halting.norm")
        yield from linear("halting_mlp.0", "halting.up")
        yield from linear("halting_mlp.2", "halting.out")
        yield from linear("pre_quantizer_mlp", "narrow")
        yield from linear("patch_embed", "patch", how="patch")
        yield from trunk("encoder.transformer", "trunk")
        yield from grid_decoder_names(embed="decoder_embed")
