"""Small plans, tokens and signals for tests that run over the whole catalogue."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.methods import catalogue
from jtok.models.towers.vit import ViT, ViTConfig
from jtok.reducer import Compose, Reducer
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens, from_features


def _of(*families: str) -> list[str]:
    return [m.name for m in catalogue.methods().values() if m.family in families]


LANGUAGE = _of("vlm-decoder")  # stand before the layers of a language model
PROJECTORS = _of("vlm-projector")
METHODS = [name for name in catalogue.methods() if name not in LANGUAGE + PROJECTORS]  # stand in the plain tower
CONFIG = ViTConfig(image=24, patch=4, width=16, depth=4, heads=2, mlp=32, classes=5)
BATCH = 3
QUESTION = 5  # tokens of text after the image
TEXT_RAGGED = (5, 3, 4)  # of them real, by row


@functools.cache
def tower() -> ViT:
    """A small random tower whose classifier is not zero."""
    model = ViT(CONFIG, nnx.Rngs(0))
    model.head.kernel[...] = jax.random.normal(jax.random.key(1), model.head.kernel.shape)
    return model


@functools.cache
def images() -> jax.Array:
    """[3,24,24,3]"""
    return jax.random.normal(jax.random.key(2), (BATCH, 24, 24, 3))


def given() -> dict[str, np.ndarray]:
    """What the tower cannot know, for methods that read it: embeddings [3,16] of questions."""
    return {"text_embedding": np.random.default_rng(3).standard_normal((BATCH, CONFIG.width), np.float32)}


tower(), images()  # made on import: first made inside a trace, they would leak out of it


def plan(name: str, keep: float, **options: Any):
    """The method's plan for the small tower."""
    return catalogue.make_plan(name, CONFIG.target(), keep, **options)


def first_reducer(name: str, keep: float, grid: tuple[int, int] = (6, 6)) -> Reducer | None:
    """The reducer at the method's first site, for a tower of this grid; None for plans that only resize the image."""
    target = Target(CONFIG.depth, grid, CONFIG.width, CONFIG.heads, 1, CONFIG.classes)
    sites = catalogue.make_plan(name, target, keep).sites
    return next(iter(sites.values()), None)


def chain(name: str, keep: float, grid: tuple[int, int] = (6, 6), **options: Any) -> Reducer:
    """All reducers of a method in a language model or at its projector, one after the other."""
    target = Target(CONFIG.depth, grid, CONFIG.width, CONFIG.heads, 1, layers=8)
    return functools.reduce(Compose, catalogue.make_plan(name, target, keep, **options).sites.values())


def tokens(seed: int = 0, grid: tuple[int, int] = (6, 6), special: int = 1, valid: jax.Array | None = None) -> Tokens:
    """Random tokens [3, special + patches, 16], clustered enough to have clear neighbours."""
    n = special + grid[0] * grid[1]
    x = jax.random.normal(jax.random.key(seed), (BATCH, n, CONFIG.width))
    return from_features(x, grid, special, valid)


def signals(reducer: Reducer, t: Tokens, seed: int = 1, train: bool = False) -> Signals:
    """Random signals of the kind the reducer reads, for tokens t; attention to padding is zero."""
    b, n, h, dh, text = *t.x.shape[:2], CONFIG.heads, 8, QUESTION
    keys = jax.random.split(jax.random.key(seed), 16)
    seen = t.mask().astype(jnp.float32)
    asked = jnp.arange(text) < jnp.asarray(TEXT_RAGGED)[jnp.arange(b) % 3, None]

    def attention(key, *rows):
        p = jax.nn.softmax(jax.random.normal(key, (b, h, *rows, n)) * 2) * seen.reshape(b, 1, *[1] * len(rows), n)
        return p / p.sum(-1, keepdims=True)

    made = {
        "class_attention": attention(keys[0]),
        "attention_received": jax.random.uniform(keys[1], (b, n), minval=0.1) * seen,
        "queries": jax.random.normal(keys[2], (b, n, h, dh)),
        "keys": jax.random.normal(keys[3], (b, n, h, dh)),
        "values": jax.random.normal(keys[4], (b, n, h, dh)),
        "last_token_attention": attention(keys[5]),
        "next_last_token_attention": attention(keys[6]),
        "text_attention": attention(keys[7], text) * asked[:, None, :, None],
        "text_features": jax.random.normal(keys[8], (b, text, CONFIG.width)),
        "text_keys": jax.random.normal(keys[9], (b, text, h, dh)),
        "text_valid": asked,
        "rotary_position": jnp.broadcast_to(jnp.arange(4, 4 + n)[:, None], (b, n, 1)),
        "text_position": jnp.broadcast_to(jnp.arange(4 + n, 4 + n + text)[:, None], (b, text, 1)),
        "normed": jax.random.normal(keys[10], (b, n, CONFIG.width)),
        "text_normed": jax.random.normal(keys[11], (b, text, CONFIG.width)),
        "text_embedding": jax.random.normal(keys[12], (b, CONFIG.width)),
    }
    key = jax.random.split(jax.random.key(seed + 1), b)
    return Signals(**{name: made[name] for name in reducer.reads}, key=key, train=train)


def permute(t: Tokens, s: Signals, order: np.ndarray) -> tuple[Tokens, Signals]:
    """Tokens and signals with the patches in another order (special tokens stay first); positions go along."""
    index = jnp.broadcast_to(jnp.concatenate([jnp.arange(t.special), t.special + jnp.asarray(order)]), t.x.shape[:2])
    moved = t.take(index.astype(jnp.int32))
    rows = {k: jnp.take(v, index[0], axis=1) for k, v in s.per_token().items()}
    return moved, s.with_per_token(rows)


def disturbed(s: Signals, valid: jax.Array, by: float = 7.0) -> Signals:
    """Other values wherever there is padding, of tokens or of the question; attention to padding stays zero."""
    changed = {}
    for name, row in s.per_token().items():
        if "attention" not in name and jnp.issubdtype(row.dtype, jnp.floating):
            changed[name] = row + jnp.where(valid, 0.0, by).reshape(*valid.shape, *[1] * (row.ndim - 2))
    s = s.with_per_token(changed)
    text = {name: getattr(s, name) for name in ("text_features", "text_keys", "text_normed")}
    asked = None if s.text_valid is None else s.text_valid
    for name, row in text.items():
        if row is not None and asked is not None:
            text[name] = row + jnp.where(asked, 0.0, by).reshape(*asked.shape, *[1] * (row.ndim - 2))
    return s.replace(**text)
