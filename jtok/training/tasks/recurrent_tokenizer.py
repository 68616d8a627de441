"""Training of ALIT: predict the frozen base's codes in all rounds, then train on the pixels of one drawn round.

"Adaptive Length Image Tokenization via Recurrent Allocation", arXiv:2411.02393. Stage `codes`: smoothed cross-entropy
weighted by the round, squared error of the expected code, and the quantizer's losses (on a VAE, squared error alone).
Stage `pixels`: absolute error, perception and an adversary, one discriminator for every round.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.tokenizers.alit import ALIT, ALITConfig
from jtok.tokenizers.base_grid import as_image, guessed_code
from jtok.training.losses.image_loss import PictureLoss
from jtok.training.tasks import on_base
from jtok.training.tasks.image_task import psnr

#: Weights of the rounds' guesses; later rounds have the last one's.
ROUNDS = (2.5, 2.0, 1.5, 1.25, 1.0)
SMOOTHING = 0.1


def default_config() -> ml_collections.ConfigDict:
    """Every field of the experiment, with defaults."""
    return on_base.staged_defaults("recurrent_tokenizer")


def code_loss(
    guess: Float[Array, "B N C"],
    codes: Float[Array, "B N E"],
    targets: Int[Array, "B N"] | None,
    book: Float[Array, "C E"] | None,
    weight: float = 1.0,
) -> Float[Array, ""]:
    """How far a guess is from the base's codes: cross-entropy times weight and squared error, or with no codebook the
    latter times weight."""
    if targets is None:
        return weight * jnp.square(guess - codes).mean()
    labels = optax.smooth_labels(jax.nn.one_hot(targets, guess.shape[-1]), SMOOTHING)
    cross = optax.softmax_cross_entropy(guess, labels).mean()
    return weight * cross + jnp.square(guessed_code(guess, book) - book[targets]).mean()


class RecurrentTokenizer(on_base.OnBase):
    """The task: parameters are {"tokenizer": ALIT, "base"} and in the second stage what `PictureLoss` adds."""

    def __init__(self, config: ml_collections.ConfigDict):
        def made(fields, rngs):
            base = {"base_width": self.base.channels, "base_codes": self.base.codes}
            return ALIT(ALITConfig(**{**fields, **base}), rngs)

        super().__init__(config, made)
        if config.stage not in ("codes", "pixels"):
            raise UserError(f"config.stage is '{config.stage}': choose codes or pixels.")
        if self.shape.patch != self.base.stride:
            raise UserError(f"the base has stride {self.base.stride}: the tokenizer's patch must be that.")
        self.side = self.shape.image
        self.pictures = PictureLoss(config, self.shape.rounds) if config.stage == "pixels" else None

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters of all parts."""
        image_params = self.pictures.init(jax.random.fold_in(key, 1)) if self.pictures else {}
        return {**super().init(key), **image_params}

    def loss(self, params, batch, key, step) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The stage's."""
        images = batch["image"].astype(jnp.float32) / 255
        net, base, (first, second) = self.tokenizer(params), self.base.bind(params["base"]), jax.random.split(key)
        grid = base.encode(images)
        targets = self.targets(base, grid)
        uniforms = jax.random.uniform(first, (self.shape.rounds, images.shape[0], self.shape.patches))
        rounds = net.rollout(images, grid, targets, train=True, uniforms=uniforms)
        book = None if net.base_codebook is None else net.base_codebook[...]
        losses = jnp.stack([jnp.asarray(one.losses.get("total", 0.0)) for one in rounds])
        if self.pictures is None:
            codes = grid.reshape(*rounds[0].guess.shape[:2], -1)
            weights = (*ROUNDS, *[ROUNDS[-1]] * len(rounds))
            each = [code_loss(one.guess, codes, targets, book, w) for one, w in zip(rounds, weights, strict=False)]
            terms = {"guess": sum(each) / len(each), "bottleneck": losses.mean()}
            return sum(terms.values()), {**terms, "guess_first": each[0], "guess_last": each[-1]}
        drawn = jax.random.randint(second, (), 0, len(rounds))  # which other rounds are not paid for by a base decoder
        guess = jnp.stack([one.guess for one in rounds])[drawn]
        terms, logged = self.pictures(params, as_image(base, guessed_code(guess, book)), images, step, drawn)
        terms["bottleneck"] = losses[drawn]
        return sum(terms.values()), {**terms, **logged}

    def evaluate(self, params, batch) -> dict[str, Float[Array, "B"]]:
        """PSNR after every round, dB."""
        images = batch["image"].astype(jnp.float32) / 255
        net, base = self.tokenizer(params), self.base.bind(params["base"])
        grid = base.encode(images)
        book = None if net.base_codebook is None else net.base_codebook[...]
        rounds = net.rollout(images, grid, self.targets(base, grid))
        reconstructions = [as_image(base, guessed_code(one.guess, book)) for one in rounds]
        return {f"psnr_{n}": psnr(x, images) for n, x in zip(net.lengths, reconstructions, strict=True)}
