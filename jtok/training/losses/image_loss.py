"""What a reconstruction is judged by: pixels, structure, perception and an adversary, as `config.loss` weighs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.training.losses.adversary import Adversary, adversary_config
from jtok.training.losses.lpips import LPIPS
from jtok.training.losses.tokenizer import averaged, pixel_loss, pyramid_loss

#: Mean squared error (40 dB) far below which an image is as good as its original.
VISIBLE = 1e-4


def add_defaults(config: ml_collections.ConfigDict) -> None:
    """`config.loss` and `config.adversary`: weights, and the files of LPIPS."""
    # log: of the square loss of each image, so that every image and length has the same say in dB
    # coarse: the same of images averaged over squares of 8 pixels, whose errors are what one sees between tiles
    weights = {"square": 1.0, "absolute": 0.0, "pyramid": 0.0, "log": 0.0, "coarse": 0.0}
    config.loss = ml_collections.ConfigDict(weights)
    config.loss.lpips = 0.0  # needs the files below; `pyramid` is the substitute that needs none
    config.loss.lpips_net = "vgg"
    config.loss.lpips_backbone = ""  # safetensors of torchvision's classifier
    config.loss.lpips_linear = ""  # safetensors of LPIPS's linear weights
    config.adversary = adversary_config()


class PictureLoss:
    """The terms of a tokenizer's loss on its images. `parts` of parameters come with it: {"lpips"} (frozen),
    {"discriminator", "state"}; judges: how many discriminators there are."""

    def __init__(self, config: ml_collections.ConfigDict, judges: int = 1):
        self.weights, self.adversary_weight = config.loss, config.adversary.weight
        self.adaptive = config.adversary.adaptive
        self.adversary = Adversary(config, judges) if self.adversary_weight else None
        if self.weights.lpips and not (self.weights.lpips_backbone and self.weights.lpips_linear):
            raise UserError(
                "config.loss.lpips is above 0 but its weights are in no file: set config.loss.lpips_backbone and "
                "config.loss.lpips_linear, or use config.loss.pyramid, which needs none."
            )

    def init(self, key: Array) -> dict[str, Any]:
        """The parameters in addition to the tokenizer's. Raises UserError for invalid LPIPS files."""
        parts = self.adversary.init(key) if self.adversary else {}
        if self.weights.lpips:
            w = self.weights
            found = LPIPS.load(w.lpips_backbone, w.lpips_linear, w.lpips_net)
            kernels = {f"layer{i}": {"kernel": k, "bias": b} for i, (k, b) in found.kernels.items()}
            parts["lpips"] = {"layers": kernels, "linear": {f"tap{i}": w for i, w in enumerate(found.linear)}}
        return parts

    def perception(self, params: Mapping[str, Any]) -> LPIPS:
        """LPIPS with the weights that are among the parameters."""
        layers, linear = params["lpips"]["layers"], params["lpips"]["linear"]
        kernels = {int(name.removeprefix("layer")): (a["kernel"], a["bias"]) for name, a in layers.items()}
        return LPIPS(self.weights.lpips_net, kernels, [linear[f"tap{i}"] for i in range(len(linear))])

    def reconstruction(
        self, params: Mapping[str, Any], again: Float[Array, "B H W 3"], images: Float[Array, "B H W 3"]
    ) -> dict[str, Array]:
        """The weighted terms that need no adversary."""
        weights, square = self.weights, pixel_loss(again, images)
        terms = {
            "square": weights.square * square.mean(),
            "log": weights.log * jnp.log(square + VISIBLE).mean(),
            "absolute": weights.absolute * pixel_loss(again, images, 1).mean(),
            "pyramid": weights.pyramid * pyramid_loss(again, images).mean() if weights.pyramid else jnp.zeros(()),
        }
        if weights.coarse:
            square = pixel_loss(averaged(again, 8), averaged(images, 8))
            terms["coarse"] = weights.coarse * jnp.log(square + VISIBLE).mean()
        if weights.lpips:
            terms["lpips"] = weights.lpips * self.perception(params)(again, images).mean()
        return terms

    def __call__(
        self,
        params: Mapping[str, Any],
        again: Float[Array, "B H W 3"],
        images: Float[Array, "B H W 3"],
        step: Int[Array, ""],
        which: Int[Array, ""] | int = 0,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """(weighted terms, to be summed; scalars to log). `which`: the discriminator that judges."""
        terms = self.reconstruction(params, again, images)
        if self.adversary is None:
            return terms, {}
        found = self.adversary(params, again, images, step, which)
        weight = self.adversary_weight
        if self.adaptive:
            weight *= self._balance(params, again, images, step, which)
        terms |= {"fooled": weight * found["fooled"], "beside": found["beside"]}
        return terms, {"judge": found["judge"]}

    def _balance(self, params, again, images, step, which) -> Float[Array, ""]:
        """|gradient of the reconstruction| / |gradient of the adversary|, both in the image (VQGAN, arXiv:2012.09841,
        takes those in its last layer's kernel, which the image's are one step short of)."""
        ours = jax.grad(lambda x: sum(self.reconstruction(params, x, images).values()))(again)
        theirs = jax.grad(lambda x: self.adversary(params, x, images, step, which)["fooled"])(again)
        ratio = jnp.linalg.norm(ours.reshape(-1)) / (jnp.linalg.norm(theirs.reshape(-1)) + 1e-4)
        return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))
