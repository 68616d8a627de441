"""A discriminator trained alongside a tokenizer, in the same step.

Hinge losses, arXiv:1705.02894, of overlapping patches, arXiv:1611.07004; LeCam regularisation, arXiv:2104.03310, or
R1, arXiv:1801.04406. Parameters are {"discriminator": ..., "state": {"real", "fake"}}: `config.train.parts` gives the
first an optimizer of its own and a start, and lets the second, moving averages of judgements, be assigned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.training.aside import aside, assign, stop
from jtok.training.losses.tokenizer import PatchDiscriminator, gradient_penalty, hinge_losses, lecam

#: Decay of the averages of judgements that LeCam regularisation compares with.
DECAY = 0.999


def adversary_config() -> ml_collections.ConfigDict:
    """Defaults of `config.adversary`: none."""
    return ml_collections.ConfigDict(
        {
            "weight": 0.0,  # of the adversary's judgement in the tokenizer's loss; 0 = no adversary
            "adaptive": False,  # times the ratio of the gradients that the other losses and it leave in the image
            "width": 64,
            "layers": 3,
            "lecam": 0.0,
            "r1": 0.0,
        }
    )


def switch_on(config: ml_collections.ConfigDict, *, lr: float, start: int = 0, **options: Any) -> None:
    """Gives an experiment an adversary that learns at rate `lr` from update `start` on; options: `adversary_config`."""
    config.adversary.update(options)
    config.train.parts.discriminator = {"lr": lr, "start": start}
    config.train.parts.state = {"assign": True}


class Adversary:
    """Judges images; `count` discriminators share the work, each of them for images of its own kind."""

    def __init__(self, config: ml_collections.ConfigDict, count: int = 1):
        self.options, self.count = config.adversary, count
        if "discriminator" not in config.train.parts or not config.train.parts.get("state", {}).get("assign"):
            raise UserError(
                "config.adversary.weight is above 0, so config.train.parts must hold discriminator and state: "
                "call jtok.training.losses.adversary.switch_on(config, lr=..., start=...)."
            )
        self.start = config.train.parts.discriminator.get("start", 0)
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: self._fresh(jax.random.key(0))), nnx.Param)

    def _fresh(self, key: Array) -> PatchDiscriminator:
        return PatchDiscriminator(nnx.Rngs(key), self.options.width, self.options.layers)

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters; those of several discriminators are stacked."""
        one = [nnx.to_pure_dict(nnx.state(self._fresh(k), nnx.Param)) for k in jax.random.split(key, self.count)]
        averages = {"real": jnp.zeros(self.count), "fake": jnp.zeros(self.count)}
        return {"discriminator": jax.tree.map(lambda *leaves: jnp.stack(leaves), *one), "state": averages}

    def __call__(
        self,
        params: Mapping[str, Any],
        again: Float[Array, "B H W 3"],
        images: Float[Array, "B H W 3"],
        step: Int[Array, ""],
        which: Int[Array, ""] | int = 0,
    ) -> dict[str, Array]:
        """fooled: the tokenizer's loss, zero before the start, without gradient in the discriminator. judge: the
        discriminator's loss, without gradient in anything else. beside: a term to add to the loss, of value zero."""
        own = jax.tree.map(lambda leaf: leaf[which], params["discriminator"])
        net, fixed = (nnx.merge(self.graphdef, nnx.State(p)) for p in (own, stop(own)))
        real, fake = net(images), net(stop(again))
        judge = hinge_losses(real, fake)[0]
        if self.options.r1:
            judge += self.options.r1 * gradient_penalty(net, images)
        averages, score_means = params["state"], {"real": real.mean(), "fake": fake.mean()}
        if self.options.lecam:
            means = (stop(averages[name][which]) for name in ("real", "fake"))
            judge += self.options.lecam * lecam(score_means["real"], score_means["fake"], *means)
        begun = step >= self.start
        beside = aside(judge)
        for name, mean in score_means.items():
            new = DECAY * averages[name][which] + (1 - DECAY) * mean
            beside += assign(averages[name], averages[name].at[which].set(jnp.where(begun, new, averages[name][which])))
        fooled = jnp.where(begun, hinge_losses(real, fixed(again))[1], 0.0)
        return {"fooled": fooled, "judge": judge, "beside": beside}
