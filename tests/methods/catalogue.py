"""Small plans, tokens and signals for tests that run over the whole catalogue."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok import registry
from jtok.models.vit import ViT, ViTConfig
from jtok.plan import Reducer, Target
from jtok.signals import Signals
from jtok.tokens import Tokens, from_features

METHODS = list(registry.catalogue())
CONFIG = ViTConfig(image=24, patch=4, width=16, depth=4, heads=2, mlp=32, classes=5)
BATCH = 3


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


def plan(name: str, keep: float, **options: Any):
    """The method's plan for the small tower."""
    return registry.make_plan(name, CONFIG.target(), keep, **options)


def first_reducer(name: str, keep: float, grid: tuple[int, int] = (6, 6)) -> Reducer | None:
    """The reducer at the method's first site, for a tower of this grid; None for plans that only resize the image."""
    target = Target(CONFIG.depth, grid, CONFIG.width, CONFIG.heads, 1, CONFIG.classes)
    sites = registry.make_plan(name, target, keep).sites
    return next(iter(sites.values()), None)


def tokens(seed: int = 0, grid: tuple[int, int] = (6, 6), special: int = 1, valid: jax.Array | None = None) -> Tokens:
    """Random tokens [3, special + patches, 16], clustered enough to have clear neighbours."""
    n = special + grid[0] * grid[1]
    x = jax.random.normal(jax.random.key(seed), (BATCH, n, CONFIG.width))
    return from_features(x, grid, special, valid)


def signals(reducer: Reducer, t: Tokens, seed: int = 1, train: bool = False) -> Signals:
    """Random signals of the kind the reducer reads, for tokens t; attention to padding is zero."""
    b, n, h, dh = *t.x.shape[:2], CONFIG.heads, 8
    keys = jax.random.split(jax.random.key(seed), 5)
    seen = t.mask().astype(jnp.float32)
    attention = jax.nn.softmax(jax.random.normal(keys[0], (b, h, n)) * 2) * seen[:, None]
    made = {
        "class_attention": attention / attention.sum(-1, keepdims=True),
        "attention_received": jax.random.uniform(keys[1], (b, n), minval=0.1) * seen,
        "queries": jax.random.normal(keys[2], (b, n, h, dh)),
        "keys": jax.random.normal(keys[3], (b, n, h, dh)),
        "values": jax.random.normal(keys[4], (b, n, h, dh)),
    }
    key = jax.random.split(jax.random.key(seed + 1), b)
    return Signals(**{name: made[name] for name in reducer.reads}, key=key, train=train)


def permute(t: Tokens, s: Signals, order: np.ndarray) -> tuple[Tokens, Signals]:
    """Tokens and signals with the patches in another order (special tokens stay first); positions go along."""
    index = jnp.broadcast_to(jnp.concatenate([jnp.arange(t.special), t.special + jnp.asarray(order)]), t.x.shape[:2])
    moved = t.take(index.astype(jnp.int32))
    rows = {k: jnp.take(v, index[0], axis=1) for k, v in s.per_token().items()}
    return moved, s.with_per_token(rows)
