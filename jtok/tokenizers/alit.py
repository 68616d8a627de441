"""ALIT: latent tokens are added round by round, and every round re-encodes the image with all tokens so far.

"Adaptive Length Image Tokenization via Recurrent Allocation", arXiv:2411.02393, ICLR 2025. One encoder runs in every
round; patches that are already predicted well are masked out of its input ("halting"), so that the new tokens
attend to the rest. The codes of one round are not a prefix of those of the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.checkpoints.rules import Rule, linear, norm, table
from jtok.errors import UserError
from jtok.tokenizers.base_grid import BaseTokenizer, GuessHead, Needs, as_image, guessed_code
from jtok.tokenizers.code import Code, Tokenizer
from jtok.tokenizers.quantizers import VQ
from jtok.tokenizers.quantizers.vq import unit
from jtok.tokenizers.registry import tokenizer
from jtok.tokenizers.released import trunk
from jtok.tokenizers.titok import cut_patches
from jtok.tokenizers.trunk import Trunk


@dataclasses.dataclass(frozen=True)
class ALITConfig:
    """base_width: channels of the base's grid; base_codes: size of its codebook, 0 for a VAE. Sizes (width, depth,
    heads): tiny 512, 8, 8; small 1024, 8, 8; base 768, 12, 12; semilarge 1024, 16, 16."""

    image: int = 256
    patch: int = 16
    encoder: tuple[int, int, int] = (1024, 8, 8)
    decoder: tuple[int, int, int] = (1024, 8, 8)
    tokens: int = 32  # new tokens per round
    rounds: int = 8
    most: int = 256  # rows of the decoder's position table
    codebook: int = 4096
    code_width: int = 12
    quantize: bool = True
    base_width: int = 256
    base_codes: int = 1024
    halting: bool = True
    threshold: float = 0.55  # patches predicted with lower probability never halt
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the blocks
    remat: bool = False  # recompute blocks in the backward pass

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image // self.patch) ** 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Round:
    """Outputs of one round: the encoder's tokens, the code, the prediction of the base's code, and the image tokens
    after halting (None in the last round)."""

    latent_tokens: Float[Array, "B n D"]
    image_tokens: Float[Array, "B N D"]
    latents: Float[Array, "B n d"]
    ids: Int[Array, "B n"] | None
    losses: dict[str, Array]
    guess: Float[Array, "B N C"]
    halted: Float[Array, "B N D"] | None


class GridDecoder(nnx.Module):
    """[class, mask tokens, latents] -> a prediction of the base's code at every place of the grid."""

    def __init__(self, c: ALITConfig, rngs: nnx.Rngs):
        width, depth, heads = c.decoder
        init = nnx.initializers.normal(width**-0.5)
        self.patches, self.dtype = c.patches, c.dtype
        self.embed = nnx.Linear(c.code_width, width, rngs=rngs)
        self.latent_position = nnx.Param(init(rngs.params(), (c.most, width)))
        self.class_token = nnx.Param(init(rngs.params(), (1, width)))
        self.mask_token = nnx.Param(init(rngs.params(), (1, width)))
        self.position = nnx.Param(init(rngs.params(), (c.patches + 1, width)))
        self.norm_in = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.trunk = Trunk(width, depth, heads, rngs, dtype=c.dtype, remat=c.remat)
        self.norm_out = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.head = GuessHead(width, c.base_codes or c.base_width, rngs)

    def __call__(self, latents: Float[Array, "B n d"], count: Int[Array, " B"] | None = None) -> Float[Array, "B N C"]:
        b, n = latents.shape[:2]
        x = self.embed(latents) + self.latent_position[...][:n]
        lead = jnp.concatenate([self.class_token[...], jnp.repeat(self.mask_token[...], self.patches, 0)])
        lead = jnp.broadcast_to(lead + self.position[...], (b, self.patches + 1, x.shape[-1]))
        valid = None
        if count is not None:
            valid = jnp.arange(n) < count[:, None]
            valid = jnp.concatenate([jnp.ones((b, self.patches + 1), bool), valid], 1)
        h = self.trunk(self.norm_in(jnp.concatenate([lead, x], 1)).astype(self.dtype), valid)
        return self.head(self.norm_out(h[:, 1 : self.patches + 1]))


@tokenizer(
    name="alit",
    title="Adaptive Length Image Tokenization via Recurrent Allocation",
    paper="arXiv:2411.02393, ICLR 2025",
    family="tokenizer-1d",
    training="two stages: codes of the base, then pixels",
    counts="rounds",
    generator="none",
    idea="every round adds tokens and re-encodes what is not explained yet",
    toy={"image": 16, "patch": 4, "encoder": (32, 1, 2), "decoder": (32, 1, 2), "tokens": 3, "rounds": 2, "most": 6}
    | {"codebook": 32, "code_width": 4, "base_width": 3, "base_codes": 0},
)
class ALIT(Tokenizer):
    """`base` is the frozen 2-D tokenizer; without it the tokenizer encodes given grids (`rollout`)."""

    prefix = False
    base_slot = "base"
    beside = ("base_tokenizer.", "gan_losses.")

    def __init__(self, config: ALITConfig, rngs: nnx.Rngs, base: BaseTokenizer | None = None):
        c, (width, depth, heads) = config, config.encoder
        if c.tokens * c.rounds > c.most:
            raise UserError(f"{c.rounds} rounds of {c.tokens} tokens exceed the decoder's {c.most} positions.")
        self.config, self.base = c, base
        self.lengths = tuple(c.tokens * (i + 1) for i in range(c.rounds))
        init = nnx.initializers.normal(width**-0.5)
        self.patch = nnx.Linear(3 * c.patch**2, width - c.base_width, rngs=rngs)
        self.class_token = nnx.Param(init(rngs.params(), (1, width)))
        self.mask_token = nnx.Param(init(rngs.params(), (1, width)))
        self.position = nnx.Param(init(rngs.params(), (c.patches + 1, width)))
        self.latent_tokens = nnx.Param(init(rngs.params(), (c.tokens, width)))
        self.latent_position = nnx.Param(init(rngs.params(), (c.tokens, width)))
        self.round_embedding = nnx.Param(init(rngs.params(), (c.rounds, c.tokens, width)))
        self.norm_in, self.norm_out, self.norm_again = (
            nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs) for _ in range(3)
        )  # fmt: skip
        self.trunk = Trunk(width, depth, heads, rngs, dtype=c.dtype, remat=c.remat)
        self.narrow = nnx.Linear(width, c.code_width, rngs=rngs)
        self.quantizer = VQ(c.codebook, c.code_width, cosine=True, rngs=rngs) if c.quantize else None
        self.decoder = GridDecoder(c, rngs)
        shape = (c.base_codes, c.base_width)
        self.base_codebook = nnx.Param(init(rngs.params(), shape)) if c.base_codes else None

    @property
    def base_needs(self) -> Needs:
        """A base with one grid place per patch, and the codebook that the tokenizer predicts."""
        return Needs(self.config.base_width, self.config.patch, self.config.base_codes)

    def rollout(
        self,
        images: Float[Array, "B H W 3"],
        grid: Float[Array, "B g g E"],
        targets: Int[Array, "B N"] | None = None,
        *,
        train: bool = False,
        uniforms: Float[Array, "T B N"] | None = None,
        rounds: int | None = None,
    ) -> list[Round]:
        """All rounds (or the first ones).

        grid: the base's continuous codes. targets: indices of its codes, which measure how well a place is predicted;
        without them, or with a VAE, nothing halts (in the released code, too, halting has no effect with a VAE).
        uniforms: random numbers of the halting draws (default: one half, which halts what is predicted with p > 0.5
        and above the threshold).
        """
        c, b = self.config, images.shape[0]
        x = jnp.concatenate([grid.reshape(b, c.patches, -1), self.patch(cut_patches(images, c.patch))], -1)
        lead = jnp.broadcast_to(self.class_token[...], (b, 1, x.shape[-1]))
        x = jnp.concatenate([lead, unit(x, 1e-12)], 1) + self.position[...]
        fresh = self.latent_tokens[...] + self.latent_position[...]
        new = fresh + self.round_embedding[...]
        x = self.norm_in(jnp.concatenate([x, jnp.broadcast_to(new[0], (b, *fresh.shape))], 1))
        outputs = []
        for i in range(rounds or c.rounds):
            u = jnp.full((b, c.patches), 0.5) if uniforms is None else uniforms[i]
            x, output = self._round(self.trunk(x.astype(c.dtype)), targets, u, train, last=i == c.rounds - 1)
            outputs.append(output)
            if i < c.rounds - 1:
                x = self.norm_again(jnp.concatenate([x, jnp.broadcast_to(new[i + 1], (b, *fresh.shape))], 1))
        return outputs

    def _round(self, x, targets, uniforms, train: bool, last: bool) -> tuple[Array, Round]:
        n = self.config.patches
        latent_tokens, image_tokens = x[:, n + 1 :], x[:, 1 : n + 1]
        z = self.narrow(self.norm_out(latent_tokens).astype(jnp.float32))
        if self.quantizer is None:
            latents, ids, losses = z, None, {}
        else:
            quantized = self.quantizer(z, train=train)
            latents, ids, losses = quantized.values, quantized.indices, quantized.losses
        guess, halted = self.decoder(latents), image_tokens
        if self.config.halting and targets is not None and self.base_codebook is not None:
            p = jnp.take_along_axis(jax.nn.softmax(guess, -1), targets[..., None], -1)[..., 0]
            done = (uniforms < p) & (p >= self.config.threshold)
            halted = jnp.where(done[..., None], self.mask_token[...] + self.position[...][1:], image_tokens)
            x = jnp.concatenate([x[:, :1], halted, latent_tokens], 1)
        return x, Round(latent_tokens, image_tokens, latents, ids, losses, guess, None if last else halted)

    def analyse(self, images: Float[Array, "B H W 3"], *, train: bool = False, key: Array | None = None) -> Code:
        """The code of the last round; `extra["rounds"]` holds the others'."""
        if self.base is None:
            raise UserError(
                "ALIT codes the grid of a base tokenizer: give its file as the base, or call `rollout` with a grid."
            )
        grid = self.base.encode(images)
        targets = None
        if self.base_codebook is not None:
            book = self.base_codebook[...]
            flat = grid.reshape(grid.shape[0], -1, grid.shape[-1])
            targets = jnp.argmin(jnp.square(book).sum(-1) - 2 * flat @ book.T, -1)
        u = None if key is None else jax.random.uniform(key, (self.config.rounds, images.shape[0], self.config.patches))
        rounds = self.rollout(images, grid, targets, train=train, uniforms=u)
        count = jnp.full(images.shape[0], self.lengths[-1], jnp.int32)
        return Code(rounds[-1].latents, rounds[-1].ids, count, rounds[-1].losses, {"rounds": rounds})

    def from_ids(self, ids: Int[Array, "B n"], count: Int[Array, " B"]) -> Code:
        """The code of ids of one round, padded after `count`."""
        if self.quantizer is None:
            return super().from_ids(ids, count)
        return Code(self.quantizer.decode(ids), ids, count)

    def encode(self, images, tokens: int | None = None, *, quality: float | None = None, key: Array | None = None):
        """As `Tokenizer.encode`; lengths between two rounds are rounded up to the next one."""
        self.check_request(images, tokens, quality)
        code = self.analyse(images, key=key)
        each = [self._padded(one) for one in code.extra["rounds"]]
        if quality is None:
            return each[next(i for i, n in enumerate(self.lengths) if n >= (tokens or self.lengths[-1]))]
        errors = jnp.stack([jnp.square(jnp.round(self.decode(c) * 255) / 255 - images).mean((1, 2, 3)) for c in each])
        good = errors <= 10 ** (-quality / 10)
        pick = jnp.where(good.any(0), jnp.argmax(good, 0), jnp.argmin(errors, 0))
        rows = jnp.arange(images.shape[0])
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[pick, rows], *each)

    def _padded(self, one: Round) -> Code:
        b, n = one.latents.shape[:2]
        padding = ((0, 0), (0, self.lengths[-1] - n))
        ids = None if one.ids is None else jnp.pad(one.ids, padding)
        return Code(jnp.pad(one.latents, (*padding, (0, 0))), ids, jnp.full(b, n, jnp.int32))

    def synthesise(self, code: Code, *, key: Array | None = None) -> Float[Array, "B H W 3"]:
        """Images, decoded by the base tokenizer."""
        book = None if self.base_codebook is None else self.base_codebook[...]
        return as_image(self.base, guessed_code(self.decoder(code.latents, code.count), book))

    def names(self) -> Iterator[Rule]:
        """The released names of all parameters."""
        for ours, theirs in (
            ("position", "encoder_positional_embedding"),
            ("class_token", "encoder_class_embedding"),
            ("mask_token", "encoder_mask_token"),
            ("decoder.position", "decoder_positional_embedding"),
            ("decoder.class_token", "decoder_class_embedding"),
            ("decoder.mask_token", "decoder_mask_token"),
            ("latent_tokens", "latent_tokens"),
            ("latent_position", "latent_token_positional_embedding"),
            ("round_embedding", "timestep_embedding"),
            ("decoder.latent_position", "decoder.latent_token_positional_embedding"),
            ("quantizer.codebook", "quantize.embedding.weight"),
            ("base_codebook", "base_tokenizer.vqgan.quantize.embedding.weight"),
        ):
            yield table(theirs, ours)
        yield from norm("encoder_ln_pre", "norm_in")
        yield from norm("encoder_ln_post", "norm_out")
        yield from norm("encoder_ln_recursive", "norm_again")
        yield from linear("pre_quantizer_mlp", "narrow")
        yield from linear("patch_embed", "patch", how="patch")
        yield from trunk("encoder.transformer", "trunk")
        yield from grid_decoder_names(embed="decoder.decoder_embed")


def grid_decoder_names(embed: str) -> Iterator[Rule]:
    """The decoder's names that ALIT and KARL share."""
    yield from linear(embed, "decoder.embed")
    yield from norm("decoder.ln_pre", "decoder.norm_in")
    yield from norm("decoder.ln_post", "decoder.norm_out")
    yield from trunk("decoder.transformer", "decoder.trunk")
    yield from linear("decoder.ffn.0", "decoder.head.hidden")
    yield from linear("decoder.ffn.2", "decoder.head.out")
