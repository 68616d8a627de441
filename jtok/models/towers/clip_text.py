"""CLIP's text tower and the space that it shares with image features (arXiv:2103.00020), for methods that read both."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok import kernels
from jtok.checkpoints.match import Format, Part
from jtok.checkpoints.read import read
from jtok.checkpoints.rules import Rule, norm, table
from jtok.checkpoints.safetensor_files import check_names, open_weights
from jtok.checkpoints.vit_names import CLIP_NAMES
from jtok.errors import UserError
from jtok.layers.activations import activation_named
from jtok.layers.block import Attention, block_mlp
from jtok.layers.stacked import Stacked, stack_layers

#: What transformers takes for a field that the text_config leaves out.
_DEFAULTS = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
             "num_attention_heads": 8, "max_position_embeddings": 77, "layer_norm_eps": 1e-5,
             "hidden_act": "quick_gelu", "eos_token_id": 49407}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
    """Shape of a text tower. `end` is the id whose last feature is the text's; None = the highest id of a text."""

    vocabulary: int
    width: int
    mlp: int
    depth: int
    heads: int
    length: int  # most ids of a text
    eps: float
    act: str
    end: int | None
    shared: int  # features of the shared space
    qkv_bias: bool = True
    mlp_kind: str = "mlp"
    compute: Any = jnp.float32


class _Block(nnx.Module):
    """A pre-norm block with causal attention."""

    def __init__(self, c: ClipTextConfig, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(c.width, epsilon=c.eps, rngs=rngs) for _ in range(2))
        self.attention, self.mlp = Attention(c, rngs), block_mlp(c, rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        qkv = self.attention.qkv(self.norm1(x))
        y = kernels.attention_scores(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], causal=True).out
        x = x + self.attention.out(y)
        return x + self.mlp(self.norm2(x))


class ClipTextTower(nnx.Module):
    """Ids [B,L] to embeddings [B,E] in the shared space, not normalised; what follows the end of a text is ignored."""

    def __init__(self, config: ClipTextConfig, rngs: nnx.Rngs):
        c = self.config = config
        self.embedding = nnx.Param(jnp.zeros((c.vocabulary, c.width)))
        self.position = nnx.Param(jnp.zeros((c.length, c.width)))
        self.blocks = stack_layers(lambda rngs: _Block(c, rngs), c.depth, rngs)
        self.norm = nnx.LayerNorm(c.width, epsilon=c.eps, rngs=rngs)
        self.projection = nnx.Param(jnp.zeros((c.width, c.shared)))

    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B E"]:
        x = self.embedding[...][ids] + self.position[: ids.shape[1]]
        x, _ = Stacked(self.blocks).scan(lambda layer, x: (layer(x), None), x, 0, self.config.depth)
        at = jnp.argmax(ids if self.config.end is None else ids == self.config.end, 1)
        last = jnp.take_along_axis(x, at[:, None, None], 1)[:, 0]
        return self.norm(last) @ self.projection[...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SharedSpace:
    """Maps image features [..., D] to the space of E features that texts are embedded in."""

    scale: Float[Array, " D"]
    bias: Float[Array, " D"]
    projection: Float[Array, "D E"]
    eps: float = dataclasses.field(default=1e-5, metadata={"static": True})

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """CLIP's last norm and projection, in float32."""
        x = x.astype(jnp.float32)
        x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + self.eps)
        return jnp.einsum("...d,de->...e", x * self.scale + self.bias, self.projection)


@dataclasses.dataclass(frozen=True, eq=False)
class ClipText:
    """A text tower with its parameters, its tokenizer (None: ids only) and the map of image features to its space."""

    config: ClipTextConfig
    params: Mapping[str, Any]
    space: SharedSpace
    tokenizer: tokenizers.Tokenizer | None = None

    def ids(self, texts: Sequence[str]) -> Int[np.ndarray, "B L"]:
        """Ids of texts, right-padded with the end of text and truncated to the tower's length.

        Raises UserError without a tokenizer.
        """
        if self.tokenizer is None:
            raise UserError("this CLIP came without tokenizer.json: save it with the fast tokenizer of transformers.")
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        return np.asarray([row + row[-1:] * (self.config.length - len(row)) for row in rows], np.int32)

    def encode(self, ids: Int[np.ndarray, "B L"]) -> Float[Array, "B E"]:
        """Embeddings of texts given as ids, not normalised (jitted)."""
        return self._tower(self.params, ids)

    def embed(self, texts: Sequence[str]) -> Float[Array, "B E"]:
        """Embeddings of texts, not normalised."""
        return self.encode(self.ids(texts))

    @functools.cached_property
    def _tower(self):
        graphdef, _ = nnx.split(nnx.eval_shape(lambda: ClipTextTower(self.config, nnx.Rngs(0))))
        return jax.jit(lambda params, ids: nnx.merge(graphdef, nnx.State(params))(ids))


def load_clip_text(path: str | os.PathLike) -> ClipText:
    """The text side of CLIP, and its shared space, from a Hugging Face directory of a CLIPModel.

    Raises UserError, one sentence each, for a directory that holds no CLIPModel, an activation that jtok does not
    have, missing tensors (all in one sentence), a tensor of the wrong shape, and a tokenizer that cannot be read.
    """
    weights = open_weights(path)
    stated = weights.config or {}
    fields = {**_DEFAULTS, **(stated.get("text_config") or {})}
    if stated.get("model_type") != "clip":
        raise UserError(f"'{path}' holds no CLIP with a text side: give the directory of a CLIPModel of transformers.")
    needed = {"text_projection.weight", *_SPACE.values()}
    check_names(weights, missing=needed - weights.shapes.keys(), unknown=())
    config = _config(path, fields, weights.shapes["text_projection.weight"][0])
    like = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: ClipTextTower(config, nnx.Rngs(0))), nnx.Param))
    scale, bias, projection = (jnp.asarray(weights.read(name)) for name in _SPACE.values())
    eps = (stated.get("vision_config") or {}).get("layer_norm_eps", _DEFAULTS["layer_norm_eps"])
    space = SharedSpace(scale, bias, projection.T, eps)
    params = read(weights, {"": Part(_NAMES, config)}, like, Format(left=lambda name: True))
    return ClipText(config, params, space, _tokenizer(Path(path), config.length))


_SPACE = {
    "scale": "vision_model.post_layernorm.weight",
    "bias": "vision_model.post_layernorm.bias",
    "projection": "visual_projection.weight",
}

#: Layers are named as in the image tower.
_NAMES = [
    table("text_model.embeddings.token_embedding.weight", "embedding"),
    table("text_model.embeddings.position_embedding.weight", "position"),
    *norm("text_model.final_layer_norm", "norm"),
    Rule(("text_projection.weight",), "projection", "linear"),
    *(
        dataclasses.replace(rule, names=tuple("text_model.encoder.layers.{}." + name for name in rule.names))
        for rule in CLIP_NAMES
        if rule.in_layers
    ),
]


def _config(path: str | os.PathLike, fields: Mapping[str, Any], shared: int) -> ClipTextConfig:
    end = fields["eos_token_id"]
    return ClipTextConfig(
        vocabulary=fields["vocab_size"],
        width=fields["hidden_size"],
        mlp=fields["intermediate_size"],
        depth=fields["num_hidden_layers"],
        heads=fields["num_attention_heads"],
        length=fields["max_position_embeddings"],
        eps=fields["layer_norm_eps"],
        act=activation_named(fields["hidden_act"], path, "in its text tower"),
        end=None if end == 2 else end,  # the first configs had a wrong id there; transformers then takes the highest
        shared=shared,
    )


def _tokenizer(path: Path, length: int) -> tokenizers.Tokenizer | None:
    if not (path / "tokenizer.json").is_file():
        return None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception for whatever it cannot parse
        raise UserError(f"'{path / 'tokenizer.json'}' cannot be read as a tokenizer ({error}).") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return tokenizer
