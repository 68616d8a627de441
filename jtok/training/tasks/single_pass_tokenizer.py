"""Training of KARL: code an image with few tokens, see how large the error is, then learn that more were not needed.

"Single-pass Adaptive Image Tokenization for Minimum Program Search", Duggal et al., 2025. Every step has two phases.
First a drawn number of tokens, all of them needed, and a drawn error as condition: what error they reach is measured.
Then all tokens with that error as condition: the surplus is what the halting head is to find, and what it finds is
masked. Stages `codes` and `pixels` are those of ALIT; discriminators go by the number of tokens.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.tokenizers.base_grid import as_image, guessed_code
from jtok.tokenizers.code import Code
from jtok.tokenizers.karl import BINS, KARL, KARLConfig
from jtok.training.aside import assign, stop
from jtok.training.losses.image_loss import PictureLoss
from jtok.training.tasks import on_base
from jtok.training.tasks.image_task import psnr
from jtok.training.tasks.recurrent_tokenizer import code_loss

#: Errors asked for at the start are at most this; bins at or above what was reached are asked for ever more rarely.
FIRST_ERRORS, RARER = 0.04, 0.99


def default_config() -> ml_collections.ConfigDict:
    """Every field of the experiment, with defaults."""
    config = on_base.staged_defaults("single_pass_tokenizer")
    config.budgets = tuple(range(16, 369, 16))  # numbers of tokens that the first phase draws from
    config.judges = 8  # discriminators of the second stage, each for an equal share of the budgets
    config.halting = 1.0  # weight of the halting head's loss
    config.eval_errors = (0.03, 0.07)  # wanted errors whose PSNR and number of tokens are reported
    config.train.parts.state = {"assign": True}  # the distribution of wanted errors
    return config


class SinglePassTokenizer(on_base.OnBase):
    """The task: parameters are {"tokenizer": KARL, "base", "state"} and in the second stage what `PictureLoss` adds."""

    def __init__(self, config: ml_collections.ConfigDict):
        def made(fields, rngs):
            base = {"base_width": self.base.channels, "base_codes": self.base.codes}
            return KARL(KARLConfig(**{**fields, **base}), rngs)

        super().__init__(config, made)
        if config.stage not in ("codes", "pixels"):
            raise UserError(f"config.stage is '{config.stage}': choose codes or pixels.")
        if self.shape.patch != self.base.stride:
            raise UserError(f"the base has stride {self.base.stride}: the tokenizer's patch must be that.")
        if not config.train.parts.get("state", {}).get("assign"):
            raise UserError("KARL keeps a distribution: config.train.parts.state must be {'assign': True}.")
        if not 1 <= min(config.budgets) <= max(config.budgets) <= self.shape.most:
            raise UserError(f"config.budgets must lie between 1 and the {self.shape.most} tokens that there are.")
        self.side = config.data.options.get("size", 256)
        self.pictures = PictureLoss(config, config.judges) if config.stage == "pixels" else None

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters of all parts."""
        image_params = self.pictures.init(jax.random.fold_in(key, 1)) if self.pictures else {}
        asked = jnp.asarray(np.asarray(BINS) <= FIRST_ERRORS, jnp.float32)
        return {
            **super().init(key),
            **image_params,
            "state": {**image_params.get("state", {}), "errors": asked / asked.sum()},
        }

    def loss(self, params, batch, key, step) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Of both phases, summed."""
        images = batch["image"].astype(jnp.float32) / 255
        net, base, (one, two) = self.tokenizer(params), self.base.bind(params["base"]), jax.random.split(key)
        grid, bins, odds = base.encode(images), jnp.asarray(BINS, jnp.float32), params["state"]["errors"]
        drawn = jax.random.randint(one, (), 0, len(self.config.budgets))
        few = jnp.broadcast_to(jnp.asarray(self.config.budgets, jnp.int32)[drawn], images.shape[:1])
        asked = bins[jax.random.categorical(two, jnp.log(stop(odds)), shape=images.shape[:1])]

        code = net.code(images, grid, asked, max(self.config.budgets), train=True, budget=few)
        within = jnp.arange(code.latents.shape[1]) < few[:, None]
        needless = optax.losses.sigmoid_binary_cross_entropy(code.extra["halt_logits"], jnp.zeros(within.shape))
        terms, reached = self._judged(params, net, base, code, within, images, grid, step, drawn)
        terms["halting"] = self.config.halting * needless.mean(where=within)
        rarer = jnp.where(bins >= reached.min(), RARER * odds, odds)
        terms["errors"] = assign(odds, rarer / rarer.sum())

        code = net.code(images, grid, reached, train=True)
        surplus = jnp.maximum(self.shape.tokens - few, 0)
        usual = np.searchsorted(self.config.budgets, self.shape.tokens)
        second_terms, _ = self._judged(params, net, base, code, code.extra["needed"], images, grid, step, usual)
        second_terms["halting"] = self.config.halting * net.halting_loss(code, surplus)
        terms |= {f"{name}_again": value for name, value in second_terms.items()}
        logged = {"reached": reached.mean(), "needed": code.count.mean()}
        return sum(terms.values()), {**terms, **logged}

    def _judged(self, params, net: KARL, base, code: Code, seen, images, grid, step, budget) -> tuple[dict, Array]:
        """(the stage's terms, the mean absolute error of every image)."""
        guess = net.decoder(code.latents, grid.shape[1:3], seen)
        book = None if net.base_codebook is None else net.base_codebook[...]
        reconstruction = as_image(base, guessed_code(guess, book))
        terms = {}
        if self.pictures is None:
            codes = grid.reshape(*guess.shape[:2], -1)
            terms["guess"] = code_loss(guess, codes, self.targets(base, grid), book)
        else:
            which = jnp.minimum(budget * self.config.judges // len(self.config.budgets), self.config.judges - 1)
            terms |= self.pictures(params, reconstruction, images, step, which)[0]
        terms["bottleneck"] = jnp.asarray(code.losses.get("total", 0.0))
        return terms, stop(jnp.abs(reconstruction - images).mean((1, 2, 3)))

    def evaluate(self, params, batch) -> dict[str, Float[Array, "B"]]:
        """PSNR and number of needed tokens at `config.eval_errors`."""
        images, net = batch["image"].astype(jnp.float32) / 255, self.tokenizer(params)
        net.base = nnx.data(self.base.bind(params["base"]))
        found = {}
        for error in self.config.eval_errors:
            code = net.analyse(images, error=error)
            found[f"psnr_at_{error}"] = psnr(net.synthesise(code), images)
            found[f"tokens_at_{error}"] = code.count.astype(jnp.float32)
        return found
