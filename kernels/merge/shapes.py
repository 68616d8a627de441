"""Shapes that `merge` meets in real models, for tests, benchmarks and tuning, and the least work each one is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jtok.kernels.numerics import Floor


class Shape(NamedTuple):
    """n rows of d features folded into `num`, for every image of the batch."""

    batch: int
    n: int
    num: int
    d: int

    def arrays(self, dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """x and assign without values."""
        x = jax.ShapeDtypeStruct((self.batch, self.n, self.d), dtype)
        return x, jax.ShapeDtypeStruct((self.batch, self.n), jnp.int32)

    def draw(self, key: jax.Array, dtype: Any) -> tuple[jax.Array, ...]:
        """Random x and a random assignment."""
        x, assign = self.arrays(dtype)
        key, other = jax.random.split(key)
        return jax.random.normal(key, x.shape, dtype), jax.random.randint(other, assign.shape, 0, self.num)

    @property
    def options(self) -> dict[str, Any]:
        """The op's other arguments."""
        return {"num": self.num}


SHAPES = {
    "tome-vit-s16": Shape(8, 197, 181, 384),
    "tome-vit-l14-336": Shape(8, 577, 554, 1024),
    "visionzip-llava-next": Shape(1, 2880, 64, 1024),
    "dpc-knn-llava": Shape(8, 576, 144, 1024),
    "qwen2.5-vl": Shape(1, 4096, 1024, 3584),
    "codebook-update": Shape(1, 2048, 4096, 256),
}


def floor(shape: Shape, *, itemsize: int = 4) -> Floor:
    """A multiply-add a feature; rows, assignment and weights read once, float32 sums and masses written."""
    batch, n, num, d = shape
    return Floor(flops=2 * batch * n * d, bytes=batch * (n * (d * itemsize + 8) + num * (d + 1) * 4))
