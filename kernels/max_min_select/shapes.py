"""Shapes that `max_min_select` meets in real models, for tests, benchmarks and tuning, and the least work of each."""

from typing import NamedTuple

from jtok.kernels.numerics import Floor


class Shape(NamedTuple):
    """k of n tokens with d features, for every image of the batch."""

    batch: int
    n: int
    k: int
    d: int


SHAPES = {
    "vit-s16": Shape(8, 197, 49, 384),
    "divprune-llava": Shape(8, 576, 56, 4096),
    "vit-l14-336": Shape(8, 577, 64, 1024),
    "llava-next": Shape(8, 2880, 64, 1024),
    "zoo-prune-llava-next": Shape(1, 2880, 320, 4096),
    "qwen2.5-vl": Shape(1, 4096, 410, 3584),
}


def floor(batch: int, n: int, k: int, d: int, *, itemsize: int = 4, isolated: bool = True) -> Floor:
    """One row of distances a pick, and all of them where the first pick is the most isolated token; the features read
    once, the picks written."""
    rows = k + (n if isolated else 0)
    return Floor(flops=2 * batch * rows * n * d, bytes=batch * (n * d * itemsize + 4 * k))
