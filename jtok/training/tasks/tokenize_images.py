"""Training of an image tokenizer on pixels: in one stage, or the second of two (`freeze`, `weights`).

In two stages (TiTok, arXiv:2406.07550; One-D-Piece, arXiv:2501.10064) the first is `predict_codes.py`; the second goes
on from its file with encoder and codes frozen, and trains the decoder and a pixel decoder after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.tokenizers.code import Code
from jtok.tokenizers.nested_dropout import draw_counts
from jtok.tokenizers.one_d_piece import drop_tail
from jtok.tokenizers.titok import TiTok, TiTokConfig
from jtok.training.codebook_average import CodebookAverage
from jtok.training.config import default_train_config
from jtok.training.losses import image_loss as picture_loss
from jtok.training.tasks.image_task import UNTRAINED, ImageTask, data_defaults, pixel_decoder_from, psnr, started_from


def default_config() -> ml_collections.ConfigDict:
    """Every field of a tokenizer's experiment, with defaults; configs change what they need."""
    config = default_train_config()
    config.task = "tokenize_images"
    config.tokenizer = ml_collections.ConfigDict({"fields": ml_collections.ConfigDict()})  # of `TiTokConfig`
    config.weights = ""  # file of a tokenizer to start from; what a pixel decoder adds to it is fresh
    config.pixel_decoder = ""  # file of the VQGAN whose decoder the second stage starts from
    config.freeze = ()  # parts of the tokenizer that do not learn: encoder, latent_tokens, quantizer ...
    config.data = data_defaults()
    picture_loss.add_defaults(config)
    # moving averages in place of a codebook that learns; codes with a count below `dead` move onto latents of the batch
    config.codebook = ml_collections.ConfigDict({"average": 0.0, "dead": 0.0})
    # how many latents stay in training: uniform, log_uniform, pow2, uniform_pow2, or one_for_all images of a batch;
    # "" = all
    config.drop = "uniform"
    config.eval_tokens = (1, 4, 16)  # lengths whose PSNR is reported while training
    return config


def tokenizer_config(config: ml_collections.ConfigDict) -> TiTokConfig:
    """The tokenizer that `config.tokenizer` and `config.train` ask for."""
    computed = {"dtype": config.train.dtype, "remat": config.train.remat}
    try:
        return TiTokConfig(**{**computed, **config.tokenizer.fields.to_dict()})
    except TypeError as error:
        raise UserError(f"config.tokenizer.fields are those of TiTokConfig ({error}).") from None


class TokenizeImages(ImageTask):
    """The task: parameters are {"tokenizer": TiTok}, and what `PictureLoss` and `CodebookAverage` add."""

    def __init__(self, config: ml_collections.ConfigDict):
        self.config, self.shape = config, tokenizer_config(config)
        self.side = self.shape.image
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: TiTok(self.shape, nnx.Rngs(0))), nnx.Param)
        if config.freeze and not config.weights:
            raise UserError(
                f"config.freeze keeps {', '.join(config.freeze)} as they begin, which is untrained: set config.weights "
                "to the file of the first stage."
            )
        self.pictures = picture_loss.PictureLoss(config)
        self.codebook = CodebookAverage(config, self.shape) if config.codebook.average else None

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters, or those of `config.weights`."""
        net = nnx.to_pure_dict(nnx.state(TiTok(self.shape, nnx.Rngs(key)), nnx.Param))
        if self.config.weights not in ("", UNTRAINED):
            net = started_from(self.config.weights, net, ("pixel_codes", "pixel_decoder"))
        if self.config.pixel_decoder:
            net = pixel_decoder_from(self.config.pixel_decoder, net)
        if unknown := sorted(set(self.config.freeze) - set(net)):
            raise UserError(f"config.freeze names {', '.join(unknown)}; the tokenizer's parts are {', '.join(net)}.")
        params = {"tokenizer": net, **self.pictures.init(jax.random.fold_in(key, 1))}
        if self.codebook:
            params["state"] = {**params.get("state", {}), **self.codebook.init(net)}
        return params

    def tokenizer(self, params: Mapping[str, Any]) -> TiTok:
        """The tokenizer with these parameters."""
        net = params["tokenizer"] if self.codebook is None else self.codebook.put(params)
        return nnx.merge(self.graphdef, nnx.State(net))

    def loss(self, params, batch, key, step) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Differences of pixels and structure, and what the bottleneck and an adversary ask for."""
        images = batch["image"].astype(jnp.float32) / 255
        net = self.tokenizer(params)
        code, terms = self.code(params, net, images, key)
        found, logged = self.pictures(params, net.synthesise(code), images, step)
        terms = {**found, **terms}
        return sum(terms.values()), {**terms, **logged}

    def code(self, params, net: TiTok, images: Float[Array, "B H W 3"], key: Array) -> tuple[Code, dict[str, Array]]:
        """(the code with its tail dropped, the terms of the bottleneck)."""
        if self.codebook:
            code, beside = self.codebook(params, net, images, jax.random.fold_in(key, 1))
            terms = {"bottleneck": code.losses["total"], "beside_codes": beside}
        else:
            code = net.analyse(images, train=True, key=key if self.shape.bottleneck == "kl" else None)
            terms = {"bottleneck": jnp.asarray(code.losses.get("total", 0.0))}
        if self.config.drop and self.shape.drop_tail:
            if self.config.drop == "one_for_all":
                return drop_tail(code, key)[0], terms
            code = code.take(draw_counts(key, images.shape[0], self.shape.tokens, self.config.drop))
        return code, terms

    def evaluate(self, params, batch) -> dict[str, Float[Array, "B"]]:
        """PSNR of 8-bit reconstructions at `config.eval_tokens` lengths, dB."""
        images = batch["image"].astype(jnp.float32) / 255
        net = self.tokenizer(params)
        code = net.analyse(images)
        found = {}
        for tokens in dict.fromkeys((*self.config.eval_tokens, self.shape.tokens)):
            found[f"psnr_{tokens}"] = psnr(net.decode(code, tokens if self.shape.drop_tail else None), images)
        return found

    def trainable(self, params):
        """All but frozen parts, LPIPS, and a codebook that is a moving average."""
        frozen = set(self.config.freeze)
        if not frozen and self.codebook is None and "lpips" not in params:
            return None
        learns = {name: name != "lpips" for name in params}
        learns["tokenizer"] = {name: name not in frozen for name in params["tokenizer"]}
        if self.codebook:
            learns["tokenizer"]["quantizer"] = False
        return learns
