"""Shapes of vision-language models by name, with random parameters: for benchmarks, which need no checkpoint."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jtok.errors import UserError
from jtok.models.decoder.decoder import Dtype
from jtok.models.vlm.families.all import families
from jtok.models.vlm.family import ModelConfig


def presets() -> dict[str, Callable[[Dtype], ModelConfig]]:
    """What makes the config of each preset at a dtype, over all families."""
    return {name: make for family in families().values() for name, make in family.presets.items()}


def make_vlm_config(preset: str, *, dtype: Dtype = "float32") -> ModelConfig:
    """The config of a preset; `dtype` of the decoder's parameters and of all activations.

    Raises UserError for an unknown preset, naming the nearest ones.
    """
    known = presets()
    if preset not in known:
        near = difflib.get_close_matches(preset, known, 3, 0.4) or known
        raise UserError(f"there is no vision-language preset '{preset}'; did you mean {' or '.join(near)}?")
    return known[preset](dtype)


def random_params(config: ModelConfig, seed: int = 0) -> dict[str, Any]:
    """Parameters drawn in their own dtype, layer by layer, so that temporary memory is at most one layer's array.

    Norms are one, biases zero, all else normal with standard deviation 0.02.
    """
    like = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: config.network(nnx.Rngs(0))), nnx.Param))
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(tree, [_draw(p, leaf, k) for (p, leaf), k in zip(leaves, keys, strict=True)])


def _draw(path: tuple, leaf: jax.ShapeDtypeStruct, key: jax.Array) -> jax.Array:
    name = str(path[-1].key)
    if name in ("scale", "bias"):
        return jnp.full(leaf.shape, float(name == "scale"), leaf.dtype)
    return _normal(key, leaf.shape, leaf.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    if len(shape) <= 2:
        return 0.02 * jax.random.normal(key, shape, dtype)
    return jax.lax.map(lambda k: 0.02 * jax.random.normal(k, shape[1:], dtype), jax.random.split(key, shape[0]))
