"""Training of an image tokenizer in one stage: pixels in, pixels out, with a random tail of the code left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float

from jtok.data import batches, make_dataset
from jtok.tokenizers.losses import pixel_loss, pyramid_loss
from jtok.tokenizers.nested_dropout import draw_counts
from jtok.tokenizers.titok import TiTok, TiTokConfig
from jtok.training.config import default_train_config


def default_config() -> ml_collections.ConfigDict:
    """Every field of a tokenizer's experiment, with defaults; configs change what they need."""
    config = default_train_config()
    config.task = "tokenize_images"
    config.tokenizer = ml_collections.ConfigDict({"fields": ml_collections.ConfigDict()})  # of `TiTokConfig`
    config.data = ml_collections.ConfigDict(
        {"name": "photos", "options": ml_collections.ConfigDict(), "eval_split": "validation", "eval_batch": 100}
    )
    config.loss = ml_collections.ConfigDict({"square": 1.0, "absolute": 0.0, "pyramid": 0.0})
    config.drop = "uniform"  # how many latents stay in training: uniform, pow2, uniform_pow2; "" = all
    config.eval_tokens = (1, 4, 16)  # lengths whose PSNR is reported while training
    return config


def tokenizer_config(config: ml_collections.ConfigDict) -> TiTokConfig:
    """The tokenizer that `config.tokenizer` and `config.train` ask for."""
    return TiTokConfig(**{"dtype": config.train.dtype, **config.tokenizer.fields.to_dict()})


class TokenizeImages:
    """The training loop's task: parameters are {"tokenizer": TiTok}."""

    def __init__(self, config: ml_collections.ConfigDict):
        self.config, self.shape = config, tokenizer_config(config)
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: TiTok(self.shape, nnx.Rngs(0))), nnx.Param)

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters."""
        return {"tokenizer": nnx.to_pure_dict(nnx.state(TiTok(self.shape, nnx.Rngs(key)), nnx.Param))}

    def tokenizer(self, params: Mapping[str, Any]) -> TiTok:
        """The tokenizer with these parameters."""
        return nnx.merge(self.graphdef, nnx.State(params["tokenizer"]))

    def loss(self, params, batch, key, step) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Differences of pixels and structure, and what the bottleneck asks for."""
        images, weights = batch["image"].astype(jnp.float32) / 255, self.config.loss
        net = self.tokenizer(params)
        code = net.analyse(images, train=True, key=key if self.shape.bottleneck == "kl" else None)
        if self.config.drop and self.shape.drop_tail:
            code = code.take(draw_counts(key, images.shape[0], self.shape.tokens, self.config.drop))
        again = net.synthesise(code)
        terms = {
            "square": weights.square * pixel_loss(again, images).mean(),
            "absolute": weights.absolute * pixel_loss(again, images, 1).mean(),
            "pyramid": weights.pyramid * pyramid_loss(again, images).mean() if weights.pyramid else jnp.zeros(()),
            "bottleneck": jnp.asarray(code.losses.get("total", 0.0)),
        }
        return sum(terms.values()), terms

    def evaluate(self, params, batch) -> dict[str, Float[Array, "B"]]:
        """PSNR of 8-bit reconstructions at `config.eval_tokens` lengths, dB."""
        images = batch["image"].astype(jnp.float32) / 255
        net = self.tokenizer(params)
        code = net.analyse(images)
        found = {}
        for tokens in dict.fromkeys((*self.config.eval_tokens, self.shape.tokens)):
            again = jnp.round(net.decode(code, tokens if self.shape.drop_tail else None) * 255) / 255
            error = jnp.maximum(pixel_loss(again, images), 1e-10)
            found[f"psnr_{tokens}"] = -10 * jnp.log10(error)
        return found

    def trainable(self, params):
        """Everything."""
        return None

    def dataset(self, split: str):
        """The Grain data set of a split."""
        return make_dataset(self.config.data.name, split, **self.config.data.options.to_dict())

    def train_data(self) -> Iterable[Mapping[str, Any]]:
        """Endless shuffled batches."""
        data = self.dataset("train").map(_only_image)
        return batches(data, batch=self.config.train.batch, seed=self.config.seed, shuffle=True)

    def eval_data(self) -> Iterable[Mapping[str, Any]]:
        """One pass over the evaluation split."""
        data = self.dataset(self.config.data.eval_split).map(_only_image)
        return batches(data, batch=min(self.config.data.eval_batch, len(data)), epochs=1, drop_remainder=False)


def _only_image(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"image": example["image"]}
