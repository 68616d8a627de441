"""Image classification with a vision tower, with or without token reducers in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jtok.data import batches, make_dataset
from jtok.methods import catalogue
from jtok.models.towers.presets import make_config
from jtok.models.towers.vit import ViT, ViTConfig, ViTOutput
from jtok.plan import Plan
from jtok.training.config import default_plan_config, default_train_config, plan_options
from jtok.training.weights import load_tower

#: Pixel statistics of DeiT and DINOv2; `jtok.models.towers.presets.pixel_statistics` tells those of any preset.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def default_config() -> ml_collections.ConfigDict:
    """Every field of a classification experiment, with defaults; configs change what they need."""
    config = default_train_config()
    config.task = "classify"
    config.model = ml_collections.ConfigDict({"preset": "scenes", "fields": ml_collections.ConfigDict()})
    config.plan = default_plan_config()
    config.data = ml_collections.ConfigDict(
        {"name": "digit_scenes", "options": ml_collections.ConfigDict(), "eval_split": "test", "eval_batch": 250}
    )
    config.data.mean, config.data.std = IMAGENET_MEAN, IMAGENET_STD
    config.weights = ""  # safetensors file or Hugging Face directory to start from; "shipped" = jtok's own small tower
    config.freeze_model = False  # train only the reducers of the plan
    config.label_smoothing = 0.0
    return config


def normalise(images: UInt8[Array, "B H W C"], mean, std) -> Float[Array, "B H W C"]:
    """Bytes to normalised float32 pixels."""
    scale = 1.0 / (255.0 * jnp.asarray(std, jnp.float32))
    return images.astype(jnp.float32) * scale - jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)


def make_model_config(config: ml_collections.ConfigDict) -> ViTConfig:
    """The tower that `config.model` and `config.train` (dtype, remat) ask for."""
    fields = dict(config.model.fields)
    return make_config(config.model.preset, {"dtype": config.train.dtype, "remat": config.train.remat, **fields})


def make_plan(config: ml_collections.ConfigDict, model: ViTConfig) -> Plan:
    """The plan that `config.plan` asks for."""
    return catalogue.make_plan(config.plan.method, model.target(), config.plan.keep, **plan_options(config.plan))


class Classify:
    """The training loop's task: parameters are {"model": tower, "plan": {site: learned reducer}}.

    A plan that distils from the unreduced model adds {"teacher": tower}, the frozen copy of the initial one; with
    `freeze_model` the tower is its own teacher.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        self.config = config
        self.model = make_model_config(config)
        self.plan = make_plan(config, self.model)
        self.graphdef, _ = nnx.split(nnx.eval_shape(lambda: ViT(self.model, nnx.Rngs(0))), nnx.Param)

    def init(self, key: Array) -> dict[str, Any]:
        """Fresh parameters, or those of `config.weights`."""
        state = nnx.state(ViT(self.model, nnx.Rngs(key)), nnx.Param)
        model = nnx.to_pure_dict(state)
        if self.config.weights:
            model = load_tower(self.config.weights, self.model, model)
        params = {"model": model, "plan": self.plan.params()}
        if self.plan.training.needs_teacher and not self.config.freeze_model:
            params["teacher"] = jax.tree.map(jnp.array, model)
        return params

    def apply(self, params: Mapping[str, Any], images: Array, plan: Plan | None = None, **how: Any) -> ViTOutput:
        """The tower's output for uint8 images [B,H,W,C]; `plan` replaces the task's own (Plan() = unreduced)."""
        tower = bind(self.graphdef, params["model"])
        plan = self.plan.with_params(params["plan"]) if plan is None else plan
        return tower(normalise(images, self.config.data.mean, self.config.data.std), plan, **how)

    def loss(self, params, batch, key, step) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Cross-entropy, plus the plan's own objective."""
        need_hidden = self.plan.training.needs_teacher
        output = self.apply(params, batch["image"], key=key, train=True, hidden=need_hidden)
        target = optax.smooth_labels(jax.nn.one_hot(batch["label"], self.model.classes), self.config.label_smoothing)
        cross = optax.softmax_cross_entropy(output.logits, target).mean()
        terms = {"cross_entropy": cross}
        if self.plan.training.objective is not None:
            teacher = None
            if need_hidden:
                frozen = jax.lax.stop_gradient({"model": params.get("teacher", params["model"])})
                teacher = self.apply(frozen, batch["image"], Plan(), hidden=True)
            plan = self.plan.with_params(params["plan"])
            terms |= plan.training.objective(plan, output, teacher, batch)
        accuracy = (output.logits.argmax(-1) == batch["label"]).mean()
        return sum(terms.values()), {**terms, "accuracy": accuracy}

    def evaluate(self, params, batch) -> dict[str, Float[Array, "B"]]:
        """Per image: accuracy (0 or 1) and cross-entropy."""
        logits = self.apply(params, batch["image"], key=example_keys(batch)).logits
        return {
            "accuracy": (logits.argmax(-1) == batch["label"]).astype(jnp.float32),
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]),
        }

    def trainable(self, params):
        """All but the teacher, or with `freeze_model` only the reducers."""
        frozen = {"teacher"} | ({"model"} if self.config.freeze_model else set())
        if not frozen & params.keys():
            return None
        return {name: jax.tree.map(lambda _, learns=name not in frozen: learns, part) for name, part in params.items()}

    def example_batch(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch of `rows` without its numbers."""
        side = self.model.image
        images = jax.ShapeDtypeStruct((rows, side, side, self.model.channels), jnp.uint8)
        return {"image": images, "label": jax.ShapeDtypeStruct((rows,), jnp.int32)}

    def dataset(self, split: str):
        """The Grain data set of a split."""
        return make_dataset(self.config.data.name, split, **self.config.data.options.to_dict())

    def train_data(self) -> Iterable[Mapping[str, Any]]:
        """Endless shuffled batches."""
        data = self.dataset("train").map(_only_image_and_label)
        return batches(data, batch=self.config.train.batch, seed=self.config.seed, shuffle=True)

    def eval_data(self) -> Iterable[Mapping[str, Any]]:
        """One pass over the evaluation split."""
        data = self.dataset(self.config.data.eval_split).map(_only_image_and_label)
        size = min(self.config.data.eval_batch, len(data))
        return batches(data, batch=size, epochs=1, drop_remainder=False)


def bind(graphdef, params: Mapping[str, Any]) -> ViT:
    """The tower with these parameters."""
    return nnx.merge(graphdef, nnx.State(params))


def example_keys(batch) -> Array:
    """One PRNG key per image, derived from its pixels, so that it does not depend on the batch the image is in."""
    pixels = batch["image"].astype(jnp.uint32)
    weights = jnp.arange(1, pixels[0].size + 1, dtype=jnp.uint32) * jnp.uint32(2654435761)
    return jax.vmap(jax.random.key)((pixels.reshape(len(pixels), -1) * weights).sum(-1, dtype=jnp.uint32))


def _only_image_and_label(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"image": example["image"], "label": example["label"]}
