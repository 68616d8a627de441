"""Shapes that `max_min_select` meets in real models, for tests, benchmarks and tuning, and the least work of each."""

from typing import Any, NamedTuple

import jax

from jtok.kernels.numerics import Floor


class Shape(NamedTuple):
    """k of n tokens with d features, for every image of the batch."""

    batch: int
    n: int
    k: int
    d: int

    def arrays(self, dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """x without values."""
        return (jax.ShapeDtypeStruct((self.batch, self.n, self.d), dtype),)

    def draw(self, key: jax.Array, dtype: Any) -> tuple[jax.Array, ...]:
        """Random x."""
        return (jax.random.normal(key, (self.batch, self.n, self.d), dtype),)

    @property
    def options(self) -> dict[str, Any]:
        """The op's other arguments."""
        return {"k": self.k}


SHAPES = {
    "vit-s16": Shape(8, 197, 49, 384),
    "divprune-llava": Shape(8, 576, 56, 4096),
    "vit-l14-336": Shape(8, 577, 64, 1024),
    "llava-next": Shape(8, 2880, 64, 1024),
    "zoo-prune-llava-next": Shape(1, 2880, 320, 4096),
    "qwen2.5-vl": Shape(1, 4096, 410, 3584),
}


def floor(shape: Shape, *, itemsize: int = 4, isolated: bool = True) -> Floor:
    """One row of distances a pick, and all of them where the first pick is the most isolated token; the features read
    once, the picks written."""
    batch, n, k, d = shape
    rows = k + (n if isolated else 0)
    return Floor(flops=2 * batch * rows * n * d, bytes=batch * (n * d * itemsize + 4 * k))
