"""Shapes that `attention_scores` meets in real models, for tests, benchmarks and tuning, and the least work each is."""

from typing import Any, NamedTuple

import jax

from jtok.kernels.numerics import Floor


class Shape(NamedTuple):
    """q [batch, n, heads, d] over k, v [batch, m, key_heads, d]; `rows` as the op takes them."""

    batch: int
    n: int
    m: int
    heads: int
    key_heads: int
    d: int
    causal: bool = False
    rows: None | str | tuple[int, ...] = "all"

    def arrays(self, dtype: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
        """q, k, v without values."""
        q = jax.ShapeDtypeStruct((self.batch, self.n, self.heads, self.d), dtype)
        k = jax.ShapeDtypeStruct((self.batch, self.m, self.key_heads, self.d), dtype)
        return q, k, k

    def draw(self, key: jax.Array, dtype: Any) -> tuple[jax.Array, ...]:
        """Random q, k and v."""
        keys = jax.random.split(key, 3)
        return tuple(jax.random.normal(k, x.shape, dtype) for k, x in zip(keys, self.arrays(dtype), strict=True))

    @property
    def options(self) -> dict[str, Any]:
        """The op's other arguments."""
        return {"causal": self.causal, "rows": self.rows}


SHAPES = {
    "vit-s16-cls": Shape(8, 197, 197, 6, 6, 64, rows=(0,)),
    "vit-s16": Shape(8, 197, 197, 6, 6, 64),
    "vit-l14-336-cls": Shape(8, 577, 577, 16, 16, 64, rows=(0,)),
    "vit-l14-336": Shape(8, 577, 577, 16, 16, 64),
    "siglip-so400m-384": Shape(8, 729, 729, 16, 16, 72),
    "qwen2.5-vl-tower": Shape(1, 4096, 4096, 16, 16, 80),
    "llama-7b-last": Shape(1, 704, 704, 32, 32, 128, causal=True, rows=(-1,)),
    "llama-7b-text": Shape(1, 704, 704, 32, 32, 128, causal=True, rows=tuple(range(611, 704))),
    "llava-next-last": Shape(1, 2880, 2880, 32, 32, 128, causal=True, rows=(-1,)),
    "llava-next": Shape(1, 2880, 2880, 32, 32, 128, causal=True),
    "llama-7b-decode": Shape(8, 1, 704, 32, 32, 128, causal=True, rows=(-1,)),
    "qwen2.5-vl-7b-text": Shape(1, 4224, 4224, 28, 4, 128, causal=True, rows=tuple(range(4096, 4224))),
}


def pairs(n: int, m: int, causal: bool) -> int:
    """How many (query, key) pairs are visible."""
    return n * m if not causal else sum(min(max(i + 1 + m - n, 0), m) for i in range(n))


def floor(shape: Shape, *, itemsize: int = 2) -> Floor:
    """Two matmuls over the visible pairs, a multiply-add a pair of a scored row; every array moved once.

    The exponentials (one a pair and head) are not counted: no roof is quoted for them.
    """
    b, n, m, heads, key_heads, d, causal, rows = shape
    scored = 0 if rows is None else n if rows == "all" else len(rows)
    flops = 4 * b * heads * pairs(n, m, causal) * d + 2 * b * heads * scored * m
    moved = 2 * b * (n * heads + m * key_heads) * d * itemsize
    return Floor(flops=flops, bytes=moved + 4 * b * m * (scored > 0))
