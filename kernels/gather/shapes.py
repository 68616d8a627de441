"""Shapes that `gather` meets in real models, for tests, benchmarks and tuning, and the least work each one is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtok.kernels.numerics import Floor


class Shape(NamedTuple):
    """k of n rows from each of `groups` sets (images, or images times heads), d features a row."""

    groups: int
    n: int
    k: int
    d: int

    def arrays(self, dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """x and index without values."""
        x = jax.ShapeDtypeStruct((self.groups, self.n, self.d), dtype)
        return x, jax.ShapeDtypeStruct((self.groups, self.k), jnp.int32)

    def draw(self, key: jax.Array, dtype: Any) -> tuple[jax.Array, ...]:
        """Random x, and different rows of it in rising order."""
        x, _ = self.arrays(dtype)
        key, other = jax.random.split(key)
        order = jnp.argsort(jax.random.uniform(other, (self.groups, self.n)))
        return jax.random.normal(key, x.shape, dtype), jnp.sort(order[:, : self.k].astype(jnp.int32))

    @property
    def options(self) -> dict[str, Any]:
        """The op's other arguments."""
        return {}


SHAPES = {
    "evit-vit-s16": Shape(8, 197, 138, 384),
    "visionzip-llava": Shape(8, 577, 64, 1024),
    "divprune-llava-next": Shape(1, 2880, 320, 1024),
    "fastv-llama-7b": Shape(1, 2944, 1472, 4096),
    "qwen2.5-vl": Shape(1, 4096, 1024, 3584),
    "cache-llama-7b": Shape(32, 2944, 640, 128),
}


def floor(shape: Shape, *, itemsize: int = 4) -> Floor:
    """No arithmetic; the kept rows read once and written once, and their int32 indices read."""
    groups, _, k, d = shape
    return Floor(flops=0, bytes=groups * k * (2 * d * itemsize + 4))
