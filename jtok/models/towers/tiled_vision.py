"""The tower of Llama-3.2-Vision (arXiv:2407.21783): tiles of an image that attend to each other.

A stack of local blocks, then one of gated global blocks; the output is the last block's, concatenated with those of
some local blocks. Reducers are placed at the same sites as in other towers and see one tile each, since a tile has a
class token and a position table of its own. The slots that pad a tile to a multiple of eight are special tokens after
the class token, so that no reducer takes them for patches, and are dropped after `tower.output`. Outputs of local
blocks are carried with the tokens: they are gathered and merged as the tokens are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.errors import UserError
from jtok.layers.resize import resize_grid
from jtok.layers.stack import Run, run_blocks
from jtok.layers.stacked import stack_layers
from jtok.models.towers.tiled_block import PADDING, TiledBlock
from jtok.models.towers.tiled_config import MULTIPLE, TiledConfig
from jtok.plan import Plan
from jtok.sites import TOWER_OUTPUT, tower_sites
from jtok.tokens import Tokens, from_features


class TiledTower(nnx.Module):
    """The tower over tiles [C,H,W,3] of images with `config.tiles` each, one after the other."""

    def __init__(self, config: TiledConfig, rngs: nnx.Rngs):
        c = self.config = config
        if c.width % c.heads:
            raise UserError(f"width {c.width} is not a multiple of {c.heads} heads: choose a width that is.")
        init, patches = nnx.initializers.normal(0.02), c.side**2 + 1
        kinds = {"dtype": c.compute, "rngs": rngs}
        self.patch = nnx.Linear(c.patch**2 * c.channels, c.width, use_bias=False, **kinds)
        self.special = nnx.Param(init(rngs.params(), (c.width,)))
        self.position = nnx.Param(init(rngs.params(), (patches, c.width)))
        self.position_gate = nnx.Param(jnp.zeros(()))
        self.tile_position = nnx.Param(jnp.zeros((c.aspects + 1, c.tiles * patches * c.width)))
        self.pre_tile, self.post_tile = (nnx.Param(jnp.zeros((c.aspects + 1, c.tiles * c.width))) for _ in range(2))
        self.pre_gate, self.post_gate = (nnx.Param(jnp.zeros(())) for _ in range(2))
        self.pre_norm, self.post_norm = (nnx.LayerNorm(c.width, epsilon=1e-5, **kinds) for _ in range(2))
        self.blocks = _stacked(c, c.local, False, rngs)
        self.deep = Deep(c, rngs)

    def __call__(
        self,
        tiles: Float[Array, "C H W 3"],
        aspects: Int[Array, " I"],
        present: Array,
        plan: Plan | None = None,
        *,
        key: Array | None = None,
    ) -> Run:
        """The run with each tile's tokens at the output: its class token first, then its patches.

        tiles: normalised pixels. aspects: arrangement of each image's tiles, 0 = no image. present: which tiles are not
        padding, bool [C]. key: one PRNG key per tile (default: the same for all). Raises UserError for tiles of another
        size and for plans that do not fit.
        """
        c, plan = self.config, plan or Plan()
        key = jnp.broadcast_to(jax.random.key(0), (len(tiles),)) if key is None else key
        with jax.named_scope("tower.embed"):
            run = Run(
                plan, self._embed(tiles, aspects, present, plan.grid or (c.side, c.side)), tower_sites(c.depth), key
            )
        edges = [0, *sorted({tap + 1 for tap in c.taps} | {c.local})]
        for start, stop in zip(edges, edges[1:], strict=False):
            run_blocks(self.blocks, c.depth, run, remat=c.remat, part=range(start, stop))
            if stop - 1 in c.taps:
                run.tokens = run.tokens.replace(carry={**run.tokens.carry, f"tap{stop - 1}": run.tokens.x})
        x = self.post_norm(run.tokens.x)
        run.tokens = run.tokens.replace(x=x + self._of_tiles(self.post_tile, self.post_gate, aspects, x.dtype))
        run_blocks(self.deep.blocks, c.depth, run, remat=c.remat, part=range(c.local, c.depth), first=c.local)
        run.tokens = _side_by_side(run.tokens, c.taps)
        run.reduce(TOWER_OUTPUT)
        run.tokens = _without_filling(run.tokens)
        return run

    def _embed(self, tiles: Array, aspects: Array, present: Array, grid: tuple[int, int]) -> Tokens:
        c, (rows, columns) = self.config, grid
        count = tiles.shape[0]
        if tiles.shape != (len(aspects) * c.tiles, c.image, c.image, c.channels):
            raise UserError(
                f"tiles of shape {list(tiles.shape)} were given for {len(aspects)} images: pass {c.tiles} an image, of "
                f"{c.image}x{c.image} pixels and {c.channels} channels."
            )
        if grid != (c.side, c.side):
            small = (count, rows * c.patch, columns * c.patch, c.channels)
            tiles = jax.image.resize(tiles, small, "linear", antialias=True)
        x = tiles[:, : rows * c.patch, : columns * c.patch].reshape(count, rows, c.patch, columns, c.patch, -1)
        x = self.patch(x.transpose(0, 1, 3, 2, 4, 5).reshape(count, rows * columns, -1).astype(c.compute))
        x = x + self._of_tiles(self.pre_tile, self.pre_gate, aspects, x.dtype)
        lead = jnp.broadcast_to(self.special[...].astype(x.dtype), (count, 1, c.width))
        x = self.pre_norm(jnp.concatenate([lead, x], 1) + self._positions(aspects, grid).astype(x.dtype))
        fill = -x.shape[1] % MULTIPLE
        x = jnp.concatenate([x[:, :1], jnp.zeros((count, fill, c.width), x.dtype), x[:, 1:]], 1)
        slot = jnp.arange(x.shape[1])
        padding = ((slot > 0) & (slot <= fill)) | ~present[:, None]
        return from_features(x, grid, 1 + fill).replace(carry={PADDING: padding.astype(jnp.float32)})

    def _of_tiles(self, table: nnx.Param, gate: nnx.Param, aspects: Array, dtype: Any) -> Float[Array, "C 1 D"]:
        """The vector of each tile's place in its arrangement."""
        rows = table[...][aspects].reshape(-1, 1, self.config.width)
        return (rows * jnp.tanh(gate[...])).astype(dtype)

    def _positions(self, aspects: Array, grid: tuple[int, int]) -> Float[Array, "C P D"]:
        """Positions of each tile's class token and patches, resized as in other towers where the grid is smaller."""
        side, share = self.config.side, jnp.tanh(self.position_gate[...])
        tile_table = self.tile_position[...][aspects].reshape(-1, *self.position.shape)
        both = (1 - share) * self.position[...] + share * tile_table
        body = jax.vmap(lambda table: resize_grid(table, (side, side), grid))(both[:, 1:])
        return jnp.concatenate([both[:, :1], body], 1)


class Deep(nnx.Module):
    """The stack of global blocks."""

    def __init__(self, c: TiledConfig, rngs: nnx.Rngs):
        self.blocks = _stacked(c, c.deep, True, rngs)


def _stacked(c: TiledConfig, depth: int, gated: bool, rngs: nnx.Rngs) -> TiledBlock:
    return stack_layers(lambda rngs: TiledBlock(c, rngs, gated), depth, rngs)


def _side_by_side(tokens: Tokens, taps: tuple[int, ...]) -> Tokens:
    """Sets the outputs of local blocks beside the last one, feature by feature."""
    x = jnp.stack([tokens.carry[f"tap{i}"] for i in taps], -1).reshape(*tokens.x.shape[:2], -1)
    carry = {name: a for name, a in tokens.carry.items() if name != PADDING and not name.startswith("tap")}
    return tokens.replace(x=jnp.concatenate([tokens.x, x.astype(tokens.x.dtype)], -1), carry=carry)


def _without_filling(tokens: Tokens) -> Tokens:
    """Drops all special tokens except the class token."""
    if tokens.special <= 1:
        return tokens
    index = jnp.asarray([0, *range(tokens.special, tokens.count)], jnp.int32)
    return tokens.take(jnp.broadcast_to(index, (tokens.x.shape[0], len(index)))).replace(special=1)
