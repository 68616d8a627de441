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
from jtok.signals import SIGNALS, Signal, Signals
from jtok.target import Target
from jtok.tokens import Tokens, from_features

FACTS = {name: catalogue.facts(name) for name in catalogue.methods()}
METHODS = [name for name, facts in FACTS.items() if facts.alone]  # they run on a tower alone
PROJECTORS = [name for name, facts in FACTS.items() if not facts.alone and "projector" in facts.stages]
LANGUAGE = [name for name, facts in FACTS.items() if facts.stages == ("llm",) and not facts.slots and not facts.alone]
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


def plan(name: str, keep: float | None = None, **options: Any):
    """The method's plan for the small tower, at its own ratio if it keeps no share."""
    keep = None if catalogue.find(name).default_keep is None else keep
    return catalogue.make_plan(name, CONFIG.target(), keep, **options)


def first_reducer(name: str, keep: float | None, grid: tuple[int, int] = (6, 6)) -> Reducer | None:
    """The reducer at the method's first site, for a tower of this grid; None for plans that only resize the image."""
    target = Target(CONFIG.depth, grid, CONFIG.width, CONFIG.heads, 1, CONFIG.classes)
    keep = None if catalogue.find(name).default_keep is None else keep
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
    b, n = t.x.shape[:2]
    sizes = {"B": b, "N": n, "H": CONFIG.heads, "T": QUESTION, "D": CONFIG.width, "Dh": 8, "P": 1, "E": CONFIG.width}
    given = {}
    for name in reducer.reads:
        signal = SIGNALS[name]
        shape = tuple(sizes[dim] for dim in signal.shape.split())
        key = jax.random.fold_in(jax.random.key(seed), list(SIGNALS).index(name))
        given[name] = _made(signal, key, shape, t.mask().astype(jnp.float32))
    return Signals(**given, key=jax.random.split(jax.random.key(seed + 1), b), train=train)


def _made(signal: Signal, key: jax.Array, shape: tuple[int, ...], real: jax.Array) -> jax.Array:
    asked = jnp.arange(QUESTION) < jnp.asarray(TEXT_RAGGED)[jnp.arange(shape[0]) % 3, None]
    if signal.kind == "mask":
        return asked
    if signal.kind == "positions":
        first = 4 if signal.axis is not None else 4 + real.shape[1]
        return jnp.broadcast_to(jnp.arange(first, first + shape[1])[:, None], shape)
    if signal.kind == "index":
        return jnp.zeros(shape, jnp.int32)
    if signal.kind != "probabilities":
        return jax.random.normal(key, shape)
    if signal.shape == "B N":  # sums over queries
        return jax.random.uniform(key, shape, minval=0.1) * real
    p = jax.nn.softmax(jax.random.normal(key, shape) * 2) * real.reshape(shape[0], *[1] * (len(shape) - 2), -1)
    p = p / p.sum(-1, keepdims=True)
    return p * asked[:, None, :, None] if "T" in signal.shape.split() else p


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
    asked = s.text_valid
    for name, row in text.items():
        if row is not None and asked is not None:
            text[name] = row + jnp.where(asked, 0.0, by).reshape(*asked.shape, *[1] * (row.ndim - 2))
    return s.replace(**{name: row for name, row in text.items() if row is not None})
