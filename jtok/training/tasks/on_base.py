"""What tasks share when their tokenizer is built on a frozen one: FlexTok on a VAE, ALIT and KARL on a VQGAN or VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.tokenizers.base_grid import BaseTokenizer
from jtok.tokenizers.code import Tokenizer
from jtok.tokenizers.quantizers.vq import lookup
from jtok.training.config import default_train_config
from jtok.training.losses import image_loss as picture_loss
from jtok.training.tasks.frozen_base import FrozenBase, base_config
from jtok.training.tasks.image_task import UNTRAINED, ImageTask, data_defaults, started_from


def defaults(task: str) -> ml_collections.ConfigDict:
    """The fields that these tasks have in common, with defaults."""
    config = default_train_config()
    config.task = task
    config.tokenizer = ml_collections.ConfigDict({"fields": ml_collections.ConfigDict()})
    config.base = base_config("vqgan", channels=256, style="maskgit")
    config.weights = ""  # file of a tokenizer of the same kind to start from
    config.data = data_defaults()
    return config


def staged_defaults(task: str) -> ml_collections.ConfigDict:
    """The options of ALIT and KARL too: a first stage predicts the base's codes, a second has losses on pixels."""
    config = defaults(task)
    config.stage = "codes"  # or pixels
    picture_loss.add_defaults(config)
    config.loss.update({"square": 0.0, "absolute": 1.0})
    return config


class OnBase(ImageTask):
    """Parameters are {"tokenizer", "base"}, the latter frozen. made: (fields, rngs) -> the tokenizer without base."""

    def __init__(self, config: ml_collections.ConfigDict, made: Callable[[dict[str, Any], nnx.Rngs], Tokenizer]):
        self.config, self.base = config, FrozenBase(config.base)
        fields = {"dtype": config.train.dtype, "remat": config.train.remat, **config.tokenizer.fields.to_dict()}

        def fresh(key: Array) -> Tokenizer:
            try:
                return made(fields, nnx.Rngs(key))
            except TypeError as error:
                raise UserError(
                    f"config.tokenizer.fields do not fit the tokenizer of '{config.task}' ({error})."
                ) from None

        self.fresh = fresh
        shapes = nnx.eval_shape(lambda: fresh(jax.random.key(0)))
        self.shape = shapes.config
        self.graphdef, _ = nnx.split(shapes, nnx.Param)

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters, or those of `config.weights`; the base's codebook is where the tokenizer keeps it."""
        net = nnx.to_pure_dict(nnx.state(self.fresh(key), nnx.Param))
        base = self.base.init(jax.random.fold_in(key, 2))
        if self.config.weights not in ("", UNTRAINED):
            net = started_from(self.config.weights, net)
        if "base_codebook" in net:
            net["base_codebook"] = jnp.array(base["codebook"])
        return {"tokenizer": net, "base": base}

    def tokenizer(self, params: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer with these parameters, without its base."""
        return nnx.merge(self.graphdef, nnx.State(params["tokenizer"]))

    def targets(self, base: BaseTokenizer, grid: Float[Array, "B g g E"]) -> Int[Array, "B N"] | None:
        """Indices of the base's codes; None where it has none."""
        return lookup(grid, base.codebook[...]).reshape(grid.shape[0], -1) if self.base.codes else None

    def trainable(self, params):
        """All but what is the base's, and LPIPS."""
        learns = {name: name not in ("base", "lpips") for name in params}
        if "base_codebook" in params["tokenizer"]:
            learns["tokenizer"] = {name: name != "base_codebook" for name in params["tokenizer"]}
        return learns
