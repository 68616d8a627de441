"""Shapes that `gather` meets in real models, for tests, benchmarks and tuning, and the least work each one is."""

from typing import NamedTuple

from jtok.kernels.numerics import Floor


class Shape(NamedTuple):
    """k of n rows from each of `groups` sets (images, or images times heads), d features a row."""

    groups: int
    n: int
    k: int
    d: int


SHAPES = {
    "evit-vit-s16": Shape(8, 197, 138, 384),
    "visionzip-llava": Shape(8, 577, 64, 1024),
    "divprune-llava-next": Shape(1, 2880, 320, 1024),
    "fastv-llama-7b": Shape(1, 2944, 1472, 4096),
    "qwen2.5-vl": Shape(1, 4096, 1024, 3584),
    "cache-llama-7b": Shape(32, 2944, 640, 128),
}


def floor(groups: int, n: int, k: int, d: int, *, itemsize: int = 4) -> Floor:
    """No arithmetic; the kept rows read once and written once, and their int32 indices read."""
    del n
    return Floor(flops=0, bytes=groups * k * (2 * d * itemsize + 4))
