"""Reducers made of reducers, beside `jtok.reducer.Compose`: they go with every method instead of multiplying them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jtok.errors import UserError
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.signals import Signals
from jtok.sites import Site
from jtok.tokens import Tokens, rename


@dataclasses.dataclass(frozen=True)
class Windowed(Reducer):
    """Applies a reducer inside every window of `size` = (rows, columns) patches, or of every crop, separately.

    The tokens must still lie on their full grid; special tokens are left out. Only reducers without memory can be
    placed in windows.
    """

    reducer: Reducer
    size: tuple[int, int]

    @property
    def reads(self) -> tuple[str, ...]:
        """What the inner reducer reads."""
        return self.reducer.reads

    @property
    def adaptive(self) -> bool:
        """Whether the inner reducer is."""
        return self.reducer.adaptive

    def count(self, patches: int) -> int:
        area = self.size[0] * self.size[1]
        return patches // area * self.reducer.count(area)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        order, windows = self._order(tokens)
        special, patches = tokens.split()
        rows = {k: v[:, tokens.special :] for k, v in s.per_token().items()}
        b, area = tokens.x.shape[0], self.size[0] * self.size[1]

        def cut(a):
            return a[:, order].reshape(b * windows, area, *a.shape[2:])

        body = jax.tree.map(cut, patches._rows())
        owner = jnp.broadcast_to(jnp.arange(area, dtype=jnp.int32), (b * windows, area))
        # inside, a window is a grid of its own that starts at zero
        corner = jnp.floor(body["position"][:, :1] / jnp.array(self.size)) * jnp.array(self.size)
        body["position"] = body["position"] - corner
        inner = patches.replace(**body, owner=owner, grid=self.size)
        key = None if s.key is None else jax.vmap(lambda k: jax.random.split(k, windows))(s.key).reshape(-1)
        text = {name: jnp.repeat(value, windows, 0) for name, value in s.of_text().items()}
        inner, left = self.reducer(inner, s.with_per_token(jax.tree.map(cut, rows)).replace(key=key, **text), {})
        if left:
            raise UserError(
                f"{type(self.reducer).__name__} keeps a memory across sites and cannot be placed in windows."
            )
        inner = inner.replace(position=inner.position + corner)
        body = self._stitch(patches, inner, order, b, windows)
        return _with_carry_of(special, body).concat(body), memory

    def _order(self, tokens: Tokens) -> tuple[jnp.ndarray, int]:
        """Raster indices window by window [windows * area], and the number of windows."""
        grid, size = tokens.grid, self.size
        if tokens.patches != grid[0] * grid[1]:
            raise UserError("windows need the full patch grid: put the windowed reducer before any other.")
        if grid[0] % size[0] or grid[1] % size[1]:
            raise UserError(f"windows of {size[0]}x{size[1]} do not divide a grid of {grid[0]}x{grid[1]} patches.")
        raster = jnp.arange(grid[0] * grid[1]).reshape(grid[0] // size[0], size[0], grid[1] // size[1], size[1])
        return raster.transpose(0, 2, 1, 3).reshape(-1), raster.shape[0] * raster.shape[2]

    def _stitch(self, patches: Tokens, inner: Tokens, order, b: int, windows: int) -> Tokens:
        k = inner.count
        body = jax.tree.map(lambda a: a.reshape(b, windows * k, *a.shape[2:]), inner._rows())
        offset = (jnp.arange(windows) * k)[None, :, None]
        local = inner.owner.reshape(b, windows, -1)
        new = jnp.where(local >= 0, local + offset, -1).reshape(b, -1)
        new = jnp.zeros_like(new).at[:, order].set(new)  # back to raster order: old token -> new slot
        return patches.replace(**body, owner=rename(patches.owner, new), proportional=inner.proportional)


def _with_carry_of(special: Tokens, body: Tokens) -> Tokens:
    """The special tokens with zeros for what a reducer has written into the carry of the others."""

    def zeros(a):
        return jnp.zeros((a.shape[0], special.count, *a.shape[2:]), a.dtype)

    carry = {name: special.carry.get(name, jax.tree.map(zeros, value)) for name, value in body.carry.items()}
    return special.replace(carry=carry)


def windowed(plan: Plan, size: tuple[int, int], at: Site | str) -> Plan:
    """The plan with its reducer at site `at` applied per window (its counts are then per window)."""
    sites = {site: Windowed(r, size) if site == Site.parse(at) else r for site, r in plan.sites.items()}
    return dataclasses.replace(plan, sites=sites, name=f"{plan.name}, windows of {size[0]}x{size[1]}")
