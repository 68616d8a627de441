"""What the training tasks of tokenizers share: images as data, a tokenizer as the result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from jaxtyping import Array, Float

from jtok.checkpoints.trees import flatten
from jtok.data import batches, make_dataset
from jtok.errors import UserError
from jtok.tokenizers.bases import open_base
from jtok.tokenizers.files import load_tokenizer
from jtok.training.losses.tokenizer import pixel_loss
from jtok.training.state import with_leaves

#: In place of a file: random numbers, for tests and for `jtok compile`, which needs shapes alone.
UNTRAINED = "untrained"


def data_defaults() -> ml_collections.ConfigDict:
    """`config.data` of the embedded photographs."""
    return ml_collections.ConfigDict(
        {"name": "photos", "options": ml_collections.ConfigDict(), "eval_split": "validation", "eval_batch": 100}
    )


def psnr(reconstruction: Float[Array, "B H W 3"], images: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
    """PSNR of 8-bit reconstructions, dB."""
    reconstruction = jnp.round(jnp.clip(reconstruction, 0, 1) * 255) / 255
    return -10 * jnp.log10(jnp.maximum(pixel_loss(reconstruction, images), 1e-10))


def started_from(path: str, fresh: dict[str, Any], optional: Iterable[str] = ()) -> dict[str, Any]:
    """The fresh parameters of a tokenizer with those of a file in their place.

    optional: parts (first names) that the file need not have. Raises UserError if others are missing or of another
    shape.
    """
    weights = flatten(nnx.to_pure_dict(nnx.state(load_tokenizer(path), nnx.Param)))
    wanted, optional = flatten(fresh), tuple(optional)
    missing = sorted(n for n in wanted if n not in weights and n.split(".")[0] not in optional)
    wrong = sorted(n for n in wanted if n in weights and weights[n].shape != wanted[n].shape)
    if missing or wrong:
        raise UserError(
            f"config.weights '{path}' is of another tokenizer: {', '.join((missing + wrong)[:5])} "
            f"{'are missing or' if missing else 'are'} of other shapes."
        )
    return with_leaves(fresh, {name: jnp.asarray(weights[name]) for name in wanted if name in weights})


def pixel_decoder_from(path: str, fresh: dict[str, Any]) -> dict[str, Any]:
    """The fresh parameters of a TiTok of two stages with decoder and codes of the VQGAN that its first stage predicted.

    Raises UserError for a file of anything else, or where the shapes are others.
    """
    base = nnx.to_pure_dict(nnx.state(open_base(path)))
    if "codebook" not in base:
        raise UserError(f"config.pixel_decoder '{path}' is not a VQGAN.")
    weights = {**fresh, "pixel_codes": base["codebook"], "pixel_decoder": base["decoder"]}
    shapes = [{name: a.shape for name, a in flatten(tree).items()} for tree in (weights, fresh)]
    if shapes[0] != shapes[1]:
        raise UserError(f"the decoder of config.pixel_decoder '{path}' has another shape than the tokenizer's.")
    return weights


class ImageTask:
    """Batches of images alone. A task sets `config` and `side`, the pixels a side that its tokenizer reads."""

    config: ml_collections.ConfigDict
    side: int

    def example_batch(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch of `rows` without its numbers."""
        return {"image": jax.ShapeDtypeStruct((rows, self.side, self.side, 3), jnp.uint8)}

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
