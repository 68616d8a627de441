"""Training of FlexTok: rectified flow from noise to latents, conditioned on as many codes as nested dropout leaves.

"FlexTok: Resampling Images into 1D Token Sequences of Flexible Length", arXiv:2502.13967. The latents are a frozen
VAE's, or pixels. The alignment with features of DINOv2 that the paper adds is left out: its code is not released.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float

from jtok.errors import UserError
from jtok.models.diffusion.flow import Guidance
from jtok.tokenizers.flextok import FlexTok, FlexTokConfig
from jtok.training.tasks import on_base
from jtok.training.tasks.frozen_base import base_config
from jtok.training.tasks.image_task import psnr

#: Levels of noise at which the velocity is judged in evaluation.
TIMES = (0.25, 0.5, 0.75)


def default_config() -> ml_collections.ConfigDict:
    """Every field of the experiment, with defaults."""
    config = on_base.defaults("flow_tokenizer")
    config.base = base_config("kl", channels=16, width=128, widths=(128, 256, 512, 512))
    config.eval_tokens = (1, 16)  # lengths whose PSNR is reported, in addition to that of all tokens
    config.eval_steps = 10  # of the flow, without guidance
    return config


class FlowTokenizer(on_base.OnBase):
    """The task: parameters are {"tokenizer": FlexTok, "base": VAE}; fields are those of `FlexTokConfig`."""

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__(config, lambda fields, rngs: FlexTok(FlexTokConfig(**fields), rngs))
        if self.base.channels != self.shape.channels:
            raise UserError(
                f"the base has {self.base.channels} channels and config.tokenizer.fields.channels is "
                f"{self.shape.channels}: they must be the same."
            )
        self.side = self.shape.side * self.base.stride

    def bound(self, params) -> FlexTok:
        """The tokenizer on its base."""
        net = self.tokenizer(params)
        net.vae = nnx.data(self.base.bind(params["base"]))
        return net

    def loss(self, params, batch, key, step) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The mean squared error of the velocity."""
        terms = self.bound(params).loss(batch["image"].astype(jnp.float32) / 255, key)
        return terms["total"], {"flow": terms["flow"]}

    def evaluate(self, params, batch) -> dict[str, Float[Array, "B"]]:
        """Error of the velocity with all codes, and PSNR of samples at `config.eval_tokens` lengths; the noise is the
        same for all images."""
        images, net = batch["image"].astype(jnp.float32) / 255, self.bound(params)
        x = net.latents(images)
        code, noise = net.code(x), jnp.broadcast_to(jax.random.normal(jax.random.key(0), x.shape[1:]), x.shape)

        def error(t: float) -> Float[Array, " B"]:
            velocity = net.decoder(t * noise + (1 - t) * x, jnp.full(x.shape[0], t), code)
            return jnp.square(velocity - (noise - x)).mean((1, 2, 3))

        metrics = {"flow": sum(error(t) for t in TIMES) / len(TIMES)}
        for tokens in dict.fromkeys((*self.config.eval_tokens, self.shape.registers)):
            reconstruction = net.sample(code.take(tokens), noise, steps=self.config.eval_steps, guidance=Guidance())
            metrics[f"psnr_{tokens}"] = psnr(net.vae.decode(reconstruction), images)
        return metrics
