"""Shapes that `nearest` meets in real models, for tests, benchmarks and tuning, and the least work each one is."""

from typing import Any, NamedTuple

import jax

from jtok.kernels.numerics import Floor


class Shape(NamedTuple):
    """a [batch, n, d] against b [batch, m, d], or [m, d] where `shared`."""

    batch: int
    n: int
    m: int
    d: int
    metric: str
    k: int = 1
    shared: bool = False

    def arrays(self, dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """a and b without values."""
        b = (self.m, self.d) if self.shared else (self.batch, self.m, self.d)
        return jax.ShapeDtypeStruct((self.batch, self.n, self.d), dtype), jax.ShapeDtypeStruct(b, dtype)

    def draw(self, key: jax.Array, dtype: Any) -> tuple[jax.Array, ...]:
        """Random a and b."""
        keys = jax.random.split(key)
        return tuple(jax.random.normal(k, x.shape, dtype) for k, x in zip(keys, self.arrays(dtype), strict=True))

    @property
    def options(self) -> dict[str, Any]:
        """The op's other arguments."""
        return {"metric": self.metric, "k": self.k}


SHAPES = {
    "tome-vit-s16": Shape(8, 99, 98, 64, "cosine"),
    "tome-vit-l14-336": Shape(8, 289, 288, 64, "cosine"),
    "visionzip-llava-next": Shape(1, 2816, 64, 1024, "cosine"),
    "dart-qwen2.5-vl": Shape(1, 4096, 20, 3584, "cosine"),
    "dpc-knn-vit-l14-336": Shape(8, 577, 577, 1024, "l2", k=5),
    "codebook-4096x12": Shape(8, 256, 4096, 12, "cosine", shared=True),
    "codebook-4096x32": Shape(8, 256, 4096, 32, "l2", shared=True),
    "codebook-4096x256": Shape(8, 256, 4096, 256, "l2", shared=True),
    "codebook-16384x12": Shape(8, 256, 16384, 12, "cosine", shared=True),
    "codebook-16384x32": Shape(8, 256, 16384, 32, "l2", shared=True),
    "codebook-16384x256": Shape(1, 4096, 16384, 256, "l2", shared=True),
    "codebook-262144x18": Shape(8, 256, 262144, 18, "l2", shared=True),
}


def floor(shape: Shape, *, itemsize: int = 4) -> Floor:
    """One matmul; both inputs read once, a float32 value and an int32 index written a match."""
    batch, n, m, d, _, k, shared = shape
    read = (batch * n + (1 if shared else batch) * m) * d * itemsize
    return Floor(flops=2 * batch * n * m * d, bytes=read + 8 * batch * n * k)
