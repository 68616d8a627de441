"""The generators of TiTok: transformers over the code sequence, conditioned on a class.

Ids are in [0, V), the mask is V, class c is V + 1 + c and the dropped class V + 1 + C. Two bodies were released: BERT
("vit") and a U-shaped one whose first half is joined to the second by skips ("uvit", arXiv:2209.12152).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.checkpoints.rules import Rule, linear, norm, table
from jtok.errors import UserError
from jtok.layers.mlp import mlp


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """Shape of a generator of sequences of `length` codes out of `codebook`, for `classes` classes."""

    body: Literal["vit", "uvit"] = "vit"
    codebook: int = 4096
    length: int = 32
    classes: int = 1000
    width: int = 768
    depth: int = 24
    heads: int = 16
    mlp: int = 3072

    @property
    def vocabulary(self) -> int:
        """Codes, the mask, the classes and the dropped class."""
        return self.codebook + self.classes + 2


class _Layer(nnx.Module):
    """post: norms after the residuals (BERT), else before the branches. skip: joins an earlier state first."""

    def __init__(self, c: GeneratorConfig, rngs: nnx.Rngs, *, post: bool, skip: bool = False):
        eps = 1e-12 if post else 1e-5
        self.heads, self.post = c.heads, post
        self.skip = nnx.Linear(2 * c.width, c.width, rngs=rngs) if skip else None
        self.norm1, self.norm2 = (nnx.LayerNorm(c.width, epsilon=eps, rngs=rngs) for _ in range(2))
        self.q, self.k, self.v = (nnx.Linear(c.width, c.width, use_bias=post, rngs=rngs) for _ in range(3))
        self.out = nnx.Linear(c.width, c.width, rngs=rngs)
        self.up, self.down = nnx.Linear(c.width, c.mlp, rngs=rngs), nnx.Linear(c.mlp, c.width, rngs=rngs)

    def _attend(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        q, k, v = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in (self.q, self.k, self.v))
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))

    def _feed(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return mlp(x, self.up, self.down, "gelu")

    def __call__(self, x: Float[Array, "B N D"], other: Float[Array, "B N D"] | None = None) -> Float[Array, "B N D"]:
        if self.skip is not None:
            x = self.skip(jnp.concatenate([x, other], -1))
        if self.post:
            x = self.norm1(x + self._attend(x))
            return self.norm2(x + self._feed(x))
        x = x + self._attend(self.norm1(x))
        return x + self._feed(self.norm2(x))


class Generator(nnx.Module):
    """(ids [B,K], condition [B] or None) -> logits [B,K,V]; a `jtok.tokenizers.maskgit.Network`."""

    def __init__(self, config: GeneratorConfig, rngs: nnx.Rngs):
        c = self.config = config
        if c.body == "uvit" and c.depth % 2:
            raise UserError(f"a U-shaped generator needs an even depth, not {c.depth}.")
        init, post = nnx.initializers.normal(0.02), c.body == "vit"
        self.embedding = nnx.Param(init(rngs.params(), (c.vocabulary, c.width)))
        self.position = nnx.Param(init(rngs.params(), (c.length + 1, c.width)))
        self.kind = nnx.Param(init(rngs.params(), (2, c.width))) if post else None  # BERT's token types
        self.norm = nnx.LayerNorm(c.width, epsilon=1e-12 if post else 1e-5, rngs=rngs)
        half = c.depth // 2
        self.first = nnx.List([_Layer(c, rngs, post=post) for _ in range(c.depth if post else half)])
        self.middle = None if post else _Layer(c, rngs, post=False)
        self.second = nnx.List([] if post else [_Layer(c, rngs, post=False, skip=True) for _ in range(half)])
        self.head = nnx.Linear(c.width, c.codebook, rngs=rngs)

    def __call__(self, ids: Int[Array, "B K"], condition: Int[Array, " B"] | None) -> Float[Array, "B K V"]:
        """condition None: the label is dropped, for guidance. A condition of -1 drops that row's label."""
        c, b = self.config, ids.shape[0]
        label = jnp.full((b,), -1) if condition is None else condition
        label = c.codebook + 1 + jnp.where(label < 0, c.classes, label)
        rows = jnp.concatenate([label[:, None], ids], 1)
        x = self.embedding[...][rows] + self.position[...]
        if self.kind is not None:
            x = self.norm(x + self.kind[...][0])
        skips = []
        for layer in self.first:
            x = layer(x)
            skips.append(x)
        if self.middle is not None:
            x = self.middle(x)
            for layer in self.second:
                x = layer(x, skips.pop())
            x = self.norm(x)
        return self.head(x[:, 1:])

    def names(self) -> Iterator[Rule]:
        """The released names of all parameters (those of BERT, or of the U-shaped body)."""
        if self.config.body == "uvit":
            yield from self._uvit_names()
            return
        yield from linear("model.lm_head", "head")
        yield table("model.embeddings.word_embeddings.weight", "embedding")
        yield table("model.embeddings.position_embeddings.weight", "position")
        yield table("model.embeddings.token_type_embeddings.weight", "kind")
        yield from norm("model.embeddings.LayerNorm", "norm")
        for i in range(len(self.first)):
            ours, theirs = f"first.{i}", f"model.encoder.layer.{i}"
            for one, long in (("q", "query"), ("k", "key"), ("v", "value")):
                yield from linear(f"{theirs}.attention.self.{long}", f"{ours}.{one}")
            yield from linear(f"{theirs}.attention.output.dense", f"{ours}.out")
            yield from norm(f"{theirs}.attention.output.LayerNorm", f"{ours}.norm1")
            yield from linear(f"{theirs}.intermediate.dense", f"{ours}.up")
            yield from linear(f"{theirs}.output.dense", f"{ours}.down")
            yield from norm(f"{theirs}.output.LayerNorm", f"{ours}.norm2")

    def _uvit_names(self) -> Iterator[Rule]:
        yield from linear("lm_head", "head")
        yield table("embeddings.weight", "embedding")
        yield table("pos_embed", "position")
        yield from norm("norm", "norm")
        pairs = [(f"first.{i}", f"in_blocks.{i}") for i in range(len(self.first))] + [("middle", "mid_block")]
        pairs += [(f"second.{i}", f"out_blocks.{i}") for i in range(len(self.second))]
        for ours, theirs in pairs:
            for third, part in enumerate("qkv"):
                yield Rule((f"{theirs}.attn.qkv.weight",), f"{ours}.{part}.kernel", "linear", thirds=(third, third + 1))
            yield from linear(f"{theirs}.attn.proj", f"{ours}.out")
            yield from norm(f"{theirs}.norm1", f"{ours}.norm1")
            yield from norm(f"{theirs}.norm2", f"{ours}.norm2")
            yield from linear(f"{theirs}.mlp.fc1", f"{ours}.up")
            yield from linear(f"{theirs}.mlp.fc2", f"{ours}.down")
            yield from linear(f"{theirs}.skip_linear", f"{ours}.skip")
