"""Shapes that `merge` meets in real models, for tests, benchmarks and tuning, and the least work each one is."""

from typing import NamedTuple

from jtok.kernels.numerics import Floor


class Shape(NamedTuple):
    """n rows of d features folded into `num`, for every image of the batch."""

    batch: int
    n: int
    num: int
    d: int


SHAPES = {
    "tome-vit-s16": Shape(8, 197, 181, 384),
    "tome-vit-l14-336": Shape(8, 577, 554, 1024),
    "visionzip-llava-next": Shape(1, 2880, 64, 1024),
    "dpc-knn-llava": Shape(8, 576, 144, 1024),
    "qwen2.5-vl": Shape(1, 4096, 1024, 3584),
    "codebook-update": Shape(1, 2048, 4096, 256),
}


def floor(batch: int, n: int, num: int, d: int, *, itemsize: int = 4) -> Floor:
    """A multiply-add a feature; rows, assignment and weights read once, float32 sums and masses written."""
    return Floor(flops=2 * batch * n * d, bytes=batch * (n * (d * itemsize + 8) + num * (d + 1) * 4))
