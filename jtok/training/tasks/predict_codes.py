"""First stage of a tokenizer trained in two: its decoder predicts the codes that a frozen VQGAN gives the image.

"An Image is Worth 32 Tokens for Reconstruction and Generation" (TiTok), arXiv:2406.07550: cross-entropy with the proxy
codes, and the quantizer's own losses. The second stage is `tokenize_images.py` with `weights` and `freeze`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.training.tasks import tokenize_images
from jtok.training.tasks.frozen_base import FrozenBase, base_config


def default_config() -> ml_collections.ConfigDict:
    """As of `tokenize_images`, with the base whose codes are predicted."""
    config = tokenize_images.default_config()
    config.task = "predict_codes"
    config.tokenizer.fields.update({"legacy": True, "pixels": False})
    config.base = base_config("vqgan", channels=256, style="maskgit")
    return config


class PredictCodes(tokenize_images.TokenizeImages):
    """The task: parameters are {"tokenizer": TiTok, "base": VQGAN}."""

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config)
        if not self.shape.legacy or self.shape.pixels:
            raise UserError("the first stage predicts codes: config.tokenizer.fields needs legacy=True, pixels=False.")
        if config.base.kind != "vqgan":
            raise UserError(f"the codes to predict are a VQGAN's: config.base.kind cannot be '{config.base.kind}'.")
        self.base = FrozenBase(config.base)

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters, and the base's."""
        return {**super().init(key), "base": self.base.init(jax.random.fold_in(key, 2))}

    def proxy(self, params, images: Float[Array, "B H W 3"]) -> Array:
        """The base's codes, which must be as many a side, and of as many kinds, as the decoder predicts."""
        base = self.base.bind(params["base"])
        ids, size = base.ids(images), base.codebook.shape[0]
        if ids.shape[1] != self.shape.side or size != self.shape.proxy:
            raise UserError(
                f"the base gives {ids.shape[1]} x {ids.shape[2]} codes out of {size}; the decoder predicts "
                f"{self.shape.side} x {self.shape.side} out of {self.shape.proxy}."
            )
        return ids

    def loss(self, params, batch, key, step):
        """Cross-entropy with the base's codes, and what the bottleneck asks for."""
        images = batch["image"].astype(jnp.float32) / 255
        net = self.tokenizer(params)
        code, terms = self.code(params, net, images, key)
        logits, target = net.proxy_logits(code), self.proxy(params, images)
        cross = optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()
        terms = {"cross_entropy": cross, **terms}
        return sum(terms.values()), {**terms, "accuracy": (logits.argmax(-1) == target).mean()}

    def evaluate(self, params, batch) -> dict[str, Float[Array, "B"]]:
        """How many codes are guessed right, and the PSNR of what the base's decoder makes of all guesses."""
        images = batch["image"].astype(jnp.float32) / 255
        net, base, target = self.tokenizer(params), self.base.bind(params["base"]), self.proxy(params, images)
        logits = net.proxy_logits(net.analyse(images))
        cross = optax.softmax_cross_entropy_with_integer_labels(logits, target).mean((1, 2))
        reconstruction = base.decode(base.embed(logits.argmax(-1)))
        right = (logits.argmax(-1) == target).mean((1, 2))
        return {"accuracy": right, "cross_entropy": cross, "psnr": tokenize_images.psnr(reconstruction, images)}

    def trainable(self, params):
        """All but the base."""
        learns = super().trainable({name: part for name, part in params.items() if name != "base"})
        learns = {name: True for name in params} if learns is None else learns
        return {**learns, "base": False}
