"""Cutting attention into tiles, and reading and writing one tile of each array. Used by `reference`.

A tile is (images, key heads, query rows). Inside it, the query heads that share a key head lie one after another on
the row axis: queries are [images, heads, share * rows, D], keys [images, heads, M, D], all float32.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax


class Budget(NamedTuple):
    """How many scores a tile may hold: `whole` as long as no image's rows are cut, `cut` once they are."""

    whole: int
    cut: int


# Measured on two server cores (N = 65 to 2880): a tile that stays in cache beats one large batched call, the backward
# pass has three such arrays alive at once, and once rows must be cut smaller tiles win (128 rows of 2880).
CPU_FORWARD = Budget(2_000_000, 400_000)
CPU_BACKWARD = Budget(500_000, 400_000)
DEVICE = Budget(64_000_000, 64_000_000)  # accelerators want long matmuls, and only memory limits the tile


class Tiles(NamedTuple):
    """How one call is cut: sizes of the whole (b, n, key_heads, share) and of a tile (images, heads, rows).

    `images` divides b and `heads` divides key_heads; where `rows` does not divide n, the last tile overlaps the one
    before it, and the rows that were already done are `stale`.
    """

    b: int
    n: int
    key_heads: int
    share: int
    images: int
    heads: int
    rows: int

    def loop(self, step: Any, carry: Any) -> Any:
        """`step(Tile, carry) -> carry` over every tile."""
        counts = self.b // self.images, self.key_heads // self.heads, -(-self.n // self.rows)
        if counts == (1, 1, 1):
            return step(Tile(self, 0, 0, 0, 0), carry)

        def body(i, carry):
            cut = i % counts[2]
            head = i // counts[2] % counts[1] * self.heads
            image = i // (counts[2] * counts[1]) * self.images
            return step(Tile(self, image, head, jnp.minimum(cut * self.rows, self.n - self.rows), cut), carry)

        return lax.fori_loop(0, counts[0] * counts[1] * counts[2], body, carry)


def choose_tiles(b: int, n: int, m: int, key_heads: int, share: int, budget: Budget) -> Tiles:
    """The largest tiles within `budget`; `share` query heads use one key head."""
    rows = n if share * n * m <= budget.whole else -(-n // -(-n * share * m // max(budget.cut, share * m)))
    heads = _divisor(key_heads, budget.whole // (share * rows * m)) if rows == n else 1
    images = _divisor(b, budget.whole // (key_heads * share * n * m)) if (heads, rows) == (key_heads, n) else 1
    return Tiles(b, n, key_heads, share, images, heads, rows)


def _divisor(n: int, limit: int) -> int:
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(limit, 1))


class Tile(NamedTuple):
    """One tile's place: first image, first key head, first row, and the number of its cut of the rows."""

    tiles: Tiles
    image: Any
    head: Any
    row: Any
    cut: Any

    def queries(self, x):
        """The tile of x [B,N,H,D] as [images, heads, share * rows, D]."""
        t = self.tiles
        x = lax.dynamic_slice(x, *self._query_window(x.shape[-1])).reshape(t.images, t.rows, t.heads, t.share, -1)
        return x.transpose(0, 2, 3, 1, 4).reshape(t.images, t.heads, t.share * t.rows, -1).astype(jnp.float32)

    def put_queries(self, whole, tile, add: bool = False):
        """Write `tile` over (or `add` it to) its place in `whole` [B,N,H,D]."""
        t = self.tiles
        tile = tile.reshape(t.images, t.heads, t.share, t.rows, -1).transpose(0, 3, 1, 2, 4)
        tile = tile.reshape(t.images, t.rows, t.heads * t.share, -1).astype(whole.dtype)
        return _put(whole, tile, self._query_window(whole.shape[-1])[0], add)

    def keys(self, x):
        """The tile of x [B,M,Hk,D] as [images, heads, M, D]."""
        t = self.tiles
        sizes = t.images, x.shape[1], t.heads, x.shape[-1]
        return lax.dynamic_slice(x, (self.image, 0, self.head, 0), sizes).swapaxes(1, 2).astype(jnp.float32)

    def add_keys(self, whole, tile):
        return _put(whole, tile.swapaxes(1, 2), (self.image, 0, self.head, 0), add=True)

    def rows(self, x):
        """The tile of x [B,H,N] as [images, heads, share * rows, 1]."""
        t = self.tiles
        start = self.image, self.head * t.share, self.row
        x = lax.dynamic_slice(x, start, (t.images, t.heads * t.share, t.rows))
        return x.reshape(t.images, t.heads, t.share * t.rows, 1)

    def put_rows(self, whole, tile, add: bool = False):
        t = self.tiles
        tile = tile.reshape(t.images, t.heads * t.share, t.rows)
        return _put(whole, tile, (self.image, self.head * t.share, self.row), add)

    def every_head(self, x):
        """The tile of x [B,N] as [images, 1, share * rows, 1]."""
        t = self.tiles
        x = lax.dynamic_slice(x, (self.image, self.row), (t.images, t.rows))
        return jnp.tile(x[:, None, :, None], (1, 1, t.share, 1))

    def weights(self, x):
        """As `every_head`, with zeros where the row is stale."""
        return self.drop_stale(self.every_head(x))

    def add_weights(self, whole, tile):
        t = self.tiles
        tile = tile.reshape(t.images, t.heads, t.share, t.rows).sum((1, 2))
        return _put(whole, tile, (self.image, self.row), add=True)

    def columns(self, x):
        """The tile of x [B,H,M] as [images, heads, share, M]."""
        t = self.tiles
        x = lax.dynamic_slice(x, (self.image, self.head * t.share, 0), (t.images, t.heads * t.share, x.shape[-1]))
        return x.reshape(t.images, t.heads, t.share, -1)

    def add_columns(self, whole, tile):
        t = self.tiles
        tile = tile.reshape(t.images, t.heads * t.share, -1)
        return _put(whole, tile, (self.image, self.head * t.share, 0), add=True)

    def bias(self, x):
        """The tile of x [B,M] as [images, 1, 1, M]."""
        return lax.dynamic_slice(x, (self.image, 0), (self.tiles.images, x.shape[1]))[:, None, None]

    def add_bias(self, whole, tile):
        return _put(whole, tile, (self.image, 0), add=True)

    def split(self, x):
        """[images, heads, share * rows, ...] as [images, heads, share, rows, ...]."""
        t = self.tiles
        return x.reshape(*x.shape[:2], t.share, t.rows, *x.shape[3:])

    def drop_stale(self, x):
        """x [..., share * rows, .] with zeros where an earlier tile did the row already."""
        t = self.tiles
        if t.n % t.rows == 0:
            return x
        fresh = self.row + jnp.arange(t.rows) >= self.cut * t.rows
        return jnp.where(jnp.tile(fresh, t.share)[:, None], x, 0.0)

    def _query_window(self, width: int):
        t = self.tiles
        start = self.image, self.row, self.head * t.share, 0
        return start, (t.images, t.rows, t.heads * t.share, width)


def _put(whole, tile, start, add: bool = False):
    if add:
        tile = tile + lax.dynamic_slice(whole, start, tile.shape)
    return lax.dynamic_update_slice(whole, tile, start)
