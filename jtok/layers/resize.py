"""Resizing of position tables, with the filters that released checkpoints expect."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def _cubic(t: np.ndarray) -> np.ndarray:
    """Cubic convolution kernel with a = -0.75, as torch's bicubic interpolation (jax.image uses a = -0.5)."""
    a, t = -0.75, np.abs(t)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _cubic_weights(size_in: int, size_out: int) -> np.ndarray:
    """[size_out, size_in] interpolation weights; samples beyond the border repeat it; no antialiasing."""
    at = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    base = np.floor(at).astype(int)
    weights = np.zeros((size_out, size_in))
    for tap in range(-1, 3):
        source = np.clip(base + tap, 0, size_in - 1)
        np.add.at(weights, (np.arange(size_out), source), _cubic(at - (base + tap)))
    return weights


def sine_grid(rows: int, columns: int, width: int) -> Float[Array, "N D"]:
    """2-D sine and cosine position rows in raster order; features beyond a multiple of four are zero."""
    quarter = width // 4
    omega = 1.0 / 10000.0 ** (np.arange(quarter) / quarter)
    y, x = (axis.reshape(-1, 1) * omega for axis in np.mgrid[:rows, :columns])
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1)
    return jnp.asarray(np.pad(table, ((0, 0), (0, width - 4 * quarter))), jnp.float32)


def resize_grid(
    table: Float[Array, "N D"], size: tuple[int, int], grid: tuple[int, int], antialias: bool = False
) -> Float[Array, "M D"]:
    """A [rows*columns, D] table resized from `size` to `grid` by bicubic interpolation (the same table if equal).

    Without antialiasing the cubic kernel has a = -0.75, with it a = -0.5, as in torch.
    """
    if size == grid:
        return table
    if antialias:
        squares = table.reshape(*size, -1).astype(jnp.float32)
        return jax.image.resize(squares, (*grid, squares.shape[-1]), "cubic").reshape(grid[0] * grid[1], -1)
    rows, columns = (jnp.asarray(_cubic_weights(a, b), jnp.float32) for a, b in zip(size, grid, strict=True))
    resized = jnp.einsum("ih,jw,hwd->ijd", rows, columns, table.reshape(*size, -1).astype(jnp.float32))
    return resized.reshape(grid[0] * grid[1], -1)


def _linear_weights(size_in: int, size_out: Int[Array, " B"], at: Int[Array, "B N"]) -> Float[Array, "B N H"]:
    """Antialiased linear interpolation weights of output samples `at`, for an output size known only at run time."""
    scale = size_in / size_out.astype(jnp.float32)[:, None, None]
    support = jnp.maximum(scale, 1.0)
    centre = (at[..., None] + 0.5) * scale
    weights = jnp.maximum(0.0, 1.0 - jnp.abs(jnp.arange(size_in) + 0.5 - centre) / support)
    return weights / weights.sum(-1, keepdims=True)


def sample_grid(
    table: Float[Array, "N D"], size: tuple[int, int], shapes: Int[Array, "B 2"], n: int
) -> Float[Array, "B n D"]:
    """Position rows of packed patches: the table resized to every image's own shape (antialiased bilinear).

    Patch p of an image with c columns sits at (p // c, p % c); slots beyond rows * columns hold the first patch's row
    (they are masked anyway, and so the reference fills them).
    """
    rows, columns = shapes[:, 0], shapes[:, 1]
    p = jnp.arange(n)[None]
    p = jnp.where(p < (rows * columns)[:, None], p, 0)
    wr = _linear_weights(size[0], rows, p // columns[:, None])
    wc = _linear_weights(size[1], columns, p % columns[:, None])
    return jnp.einsum("bnh,bnw,hwd->bnd", wr, wc, table.reshape(*size, -1).astype(jnp.float32))
