"""The tower of Qwen2.5-VL (arXiv:2502.13923): images of any size, window attention, patches in 2x2 quads.

A quad is what becomes one token, so here a *feature* is a quad: what reducers see after this tower holds the four
patches' features side by side, and the projector is an MLP that mixes them. Within the tower nothing is reduced.

Images of a batch (and frames of a video, each of which is encoded separately) lie on one padded grid, sized for
the largest. The grid is cut into windows once, before the first block: window attention is then attention over the
last axis of patches and full attention over both, with one mask of padding for either. No index depends on an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jtok import kernels
from jtok.errors import UserError
from jtok.layers.activations import Activation
from jtok.layers.mlp import gated_maps, gated_mlp
from jtok.layers.rotary import axial_rotation, rotate
from jtok.layers.stack import Run, wanted
from jtok.layers.stacked import Stacked, stack_layers
from jtok.models.towers.vit import ViTOutput
from jtok.plan import Plan
from jtok.pruner import Pruner
from jtok.sites import TOWER_OUTPUT, Site, Where, tower_sites
from jtok.target import Target
from jtok.tokens import from_features

Rope = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """Shape of the tower; the defaults are those of Qwen2.5-VL 3B and 7B."""

    width: int = 1280
    depth: int = 32
    heads: int = 16
    mlp: int = 3420
    channels: int = 3
    patch: int = 14
    temporal: int = 2  # frames that a patch spans
    merge: int = 2  # patches a side that become one token
    window: int = 4  # quads a side of a window (112 pixels)
    full: tuple[int, ...] = (7, 15, 23, 31)  # blocks that attend to the whole image
    act: Activation = "silu"
    theta: float = 10000.0
    eps: float = 1e-6
    grid: tuple[int, int] = (32, 32)  # quads that a plan is made for, where its maker does not say
    remat: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    any_size: ClassVar[bool] = True  # the number of features depends on the image size

    @property
    def compute(self) -> Any:
        """dtype of activations; parameters are float32."""
        return jnp.dtype(self.dtype)

    @property
    def quad(self) -> int:
        """Patches in a quad."""
        return self.merge**2

    @property
    def kernel(self) -> tuple[int, ...]:
        """Shape of the patch projection in files, where it is a convolution."""
        return self.width, self.channels, self.temporal, self.patch, self.patch

    def target(self, grid: tuple[int, int] | None = None) -> Target:
        """Facts that methods read: tokens are quads, of images with `grid` = (rows, columns) of them."""
        return Target(self.depth, grid or self.grid, self.quad * self.width, self.heads, 0, has_class=False)

    def sites(self) -> list[Site]:
        """All sites of the tower; before its output only observers may be placed."""
        return tower_sites(self.depth)

    def fit(self, plan: Plan) -> Plan:
        """The plan whose pruners in blocks, if they read no attention, are moved to the output: the last of them."""
        inside = {site: r for site, r in plan.sites.items() if site.stage == "tower" and site.layer is not None}
        if not inside or any(r.reads or not isinstance(r, Pruner) for r in inside.values()):
            return plan
        rest = {site: r for site, r in plan.sites.items() if site not in inside}
        return dataclasses.replace(plan, sites={TOWER_OUTPUT: list(inside.values())[-1]} | rest)

    def check(self, plan: Plan) -> None:
        """Raises UserError for what cannot be placed in this tower."""
        for site, reducer in plan.sites.items():
            if site.stage == "tower" and site.layer is not None and not reducer.observes:
                raise UserError(
                    f"{type(reducer).__name__} cannot reduce at '{site}' in the tower of Qwen2.5-VL, whose patches "
                    "stay in windows and quads: reduce at tower.output, projector, llm.input or llm.layer.K.input."
                )
        if plan.grid is not None:
            raise UserError(
                f"'{plan.name}' resizes images, but Qwen2.5-VL gets them as patches: set max_pixels of its processor."
            )
        if plan.inputs is not None:
            raise UserError(f"'{plan.name}' picks patches, and windows of Qwen2.5-VL's tower want all of them.")
        if plan.projector_count is not None:
            raise UserError(f"'{plan.name}' pools a grid of one size; images of Qwen2.5-VL differ: use another method.")
        if getattr(plan.projector, "layers_read", ()):
            raise UserError(f"the projector of '{plan.name}' reads layers of the tower; Qwen2.5-VL gives its last one.")

    def network(self, rngs: nnx.Rngs) -> QwenVision:
        """The tower with its arrays."""
        return QwenVision(self, rngs)

    def runs(self) -> list[tuple[int, int, bool]]:
        """(first block, end, whether they attend to the whole image) of consecutive blocks of one kind."""
        kinds = [i in self.full for i in range(self.depth)]
        edges = [0, *(i for i in range(1, self.depth) if kinds[i] != kinds[i - 1]), self.depth]
        return [(start, stop, kinds[start]) for start, stop in zip(edges, edges[1:], strict=False)]


class QwenBlock(nnx.Module):
    """x + attention(norm(x)), then x + gated MLP(norm(x))."""

    def __init__(self, c: QwenVisionConfig, rngs: nnx.Rngs):
        kinds = {"dtype": c.compute, "rngs": rngs}
        inner = (c.heads, c.width // c.heads)
        self.act = c.act
        self.norm1 = nnx.RMSNorm(c.width, epsilon=c.eps, **kinds)
        self.qkv = nnx.LinearGeneral(c.width, (3, *inner), **kinds)
        self.out = nnx.LinearGeneral(inner, c.width, axis=(-2, -1), **kinds)
        self.norm2 = nnx.RMSNorm(c.width, epsilon=c.eps, **kinds)
        self.up, self.down = gated_maps(c.width, c.mlp, **kinds)

    def attend(
        self,
        x: Float[Array, "B W P D"],
        rope: Rope,
        valid: Bool[Array, "B W P"],
        full: bool,
        wants: Collection[str] = (),
    ) -> tuple[Float[Array, "B W P D"], dict[str, Array]]:
        """The attention sub-layer; also the signals named in `wants` [B,W,P,...].

        Patches attend to their window, or to the image if `full`.
        """
        b, w, p, _ = x.shape
        groups = (b, w * p) if full else (b * w, p)
        q, k, v = jnp.moveaxis(self.qkv(self.norm1(x)).reshape(b, w * p, 3, *self.qkv.out_features[1:]), 2, 0)
        q, k, v = (a.reshape(*groups, *a.shape[2:]) for a in (rotate(q, rope), rotate(k, rope), v))
        mask = valid.reshape(groups)
        scored = "attention_received" in wants
        weights = mask.astype(jnp.float32) if scored else None
        rows = "all" if scored else None
        result = kernels.attention_scores(q, k, v, valid=mask, rows=rows, row_weights=weights)
        x = x + self.out(result.out.reshape(b, w, p, *q.shape[2:]))
        signals = {"queries": q, "keys": k, "values": v, "attention_received": result.received}
        return x, {name: signals[name].reshape(b, w, p, *signals[name].shape[2:]) for name in wants if name in signals}

    def feed_forward(self, x: Float[Array, "B W P D"]) -> Float[Array, "B W P D"]:
        """The MLP sub-layer."""
        return x + gated_mlp(self.norm2(x), self.up, self.down, self.act)


class QwenVision(nnx.Module):
    """The tower without its projector: blocks, norm, quads."""

    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs):
        c = self.config = config
        if c.width % (4 * c.heads):
            raise UserError(
                f"width {c.width} over {c.heads} heads makes no channels in fours: choose a width that does."
            )
        values = c.channels * c.temporal * c.patch**2
        self.patch = nnx.Linear(values, c.width, use_bias=False, dtype=c.compute, rngs=rngs)
        self.blocks = stack_layers(lambda rngs: QwenBlock(c, rngs), c.depth, rngs)
        self.norm = nnx.RMSNorm(c.width, epsilon=c.eps, dtype=c.compute, rngs=rngs)

    def __call__(
        self,
        pixels: Float[Array, "B Y X Q V"],
        plan: Plan | None = None,
        *,
        sizes: Int[Array, "B 2"],
        key: Array | None = None,
        hidden: bool = False,
    ) -> ViTOutput:
        """Features of images on a grid of Y x X quads, each of Q patches of V values (channel, frame, row, column).

        sizes: rows and columns of quads that an image really has, from the top left. key: one PRNG key per image [B].
        A token is a quad, the features of its patches side by side; signals are averaged over a quad. Raises UserError
        for plans that do not fit.
        """
        c, plan = self.config, plan or Plan()
        c.check(plan)
        if hidden:
            raise UserError("the tower of Qwen2.5-VL gives its last layer only.")
        b, rows, columns = pixels.shape[:3]
        inside = (jnp.arange(rows)[:, None] < sizes[:, :1, None]) & (jnp.arange(columns) < sizes[:, 1:, None])
        cut = _Cut(rows, columns, c.window, c.quad)
        with jax.named_scope("tower.embed"):
            x = cut.windows(self.patch(pixels.astype(c.compute)))
        valid = cut.windows(jnp.broadcast_to(inside[..., None], (b, rows, columns, c.quad)))
        keys = jnp.broadcast_to(jax.random.key(0), (b,)) if key is None else key

        def quads(x: Array) -> Array:
            return jnp.where(inside.reshape(b, -1, 1), cut.raster(x).reshape(b, rows * columns, -1), 0)

        run = Run(plan, from_features(quads(x), (rows, columns), 0, inside.reshape(b, -1)), c.sites(), keys)
        x = self._blocks(run, x, self._rope(cut), valid, cut, quads)
        run.tokens = run.tokens.replace(x=quads(self.norm(x)))
        run.reduce(TOWER_OUTPUT)
        return ViTOutput(run.tokens, None, None, None, run.memory, None, run.stages)

    def _blocks(
        self, run: Run, x: Array, rope: Rope, valid: Array, cut: _Cut, quads: Callable[[Array], Array]
    ) -> Array:
        """Output of the last block. Observers in `run` read the tokens, `quads(x)`, at their sites."""
        layers = Stacked(self.blocks, remat=self.config.remat, scope="tower.blocks")
        wants = wanted(run.plan, self.config.depth, "tower")

        def observed(x: Array, i: int, where: Where) -> None:
            site = Site("tower", i, where)
            if site in run.plan.sites:
                run.tokens = run.tokens.replace(x=quads(x))
                run.reduce(site)

        observed(x, 0, "input")
        for start, stop, full in self._segments(run.plan, wants):

            def body(layer: QwenBlock, x: Array, full=full) -> tuple[Array, None]:
                return layer.feed_forward(layer.attend(x, rope, valid, full)[0]), None

            if stop - start > 1:
                x, _ = layers.scan(body, x, start, stop)
                run.signals = {}
                continue
            layer = layers.layer(start)
            with jax.named_scope(f"tower.block.{start}"):
                x, signals = layer.attend(x, rope, valid, full, wants[start])
                run.signals = {name: cut.raster(a).mean(2) for name, a in signals.items()}
                observed(x, start, "after_attention")
                x = layer.feed_forward(x)
            observed(x, start, "output")
            observed(x, start + 1, "input")
        return x

    def _segments(self, plan: Plan, wants: Sequence[Sequence[str]]) -> list[tuple[int, int, bool]]:
        """(first block, end, whether they attend to the whole image): runs of one kind; observed blocks are alone."""
        alone = {site.layer - (site.where == "input") for site in plan.sites if site.layer is not None}
        alone |= {i for i, names in enumerate(wants) if names}
        segments = []
        for start, stop, full in self.config.runs():
            edges = sorted({start, stop, *(e for i in alone if start <= i < stop for e in (i, i + 1))})
            segments += [(a, b, full) for a, b in zip(edges, edges[1:], strict=False)]
        return segments

    def _rope(self, cut: _Cut) -> Rope:
        """Rotation of every patch to its row and column, [1, W * P, Dh/2]."""
        c = self.config
        row, column = np.meshgrid(np.arange(cut.rows), np.arange(cut.columns), indexing="ij")
        inner = np.divmod(np.arange(c.quad), c.merge)
        place = np.stack([c.merge * a[..., None] + i for a, i in zip((row, column), inner, strict=True)], -1)
        place = cut.windows(jnp.asarray(place[None], jnp.int32))
        return axial_rotation(place.reshape(1, -1, 2), c.width // c.heads, c.theta)


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A grid of quads cut into windows of `side` x `side` of them."""

    rows: int
    columns: int
    side: int
    quad: int

    def windows(self, x: Float[Array, "B Y X Q ..."]) -> Float[Array, "B W P ..."]:
        """The patches window by window, the grid padded to whole windows."""
        s, b, rest = self.side, x.shape[0], x.shape[4:]
        down, across = -(-self.rows // s), -(-self.columns // s)
        padding = [(0, 0), (0, down * s - self.rows), (0, across * s - self.columns)]
        x = jnp.pad(x, padding + [(0, 0)] * (x.ndim - 3))
        x = x.reshape(b, down, s, across, s, self.quad, *rest).swapaxes(2, 3)
        return x.reshape(b, down * across, s * s * self.quad, *rest)

    def raster(self, x: Float[Array, "B W P ..."]) -> Float[Array, "B N Q ..."]:
        """The quads in reading order, padding of the windows removed."""
        s, b, rest = self.side, x.shape[0], x.shape[3:]
        down, across = -(-self.rows // s), -(-self.columns // s)
        x = x.reshape(b, down, across, s, s, self.quad, *rest).swapaxes(2, 3)
        x = x.reshape(b, down * s, across * s, self.quad, *rest)[:, : self.rows, : self.columns]
        return x.reshape(b, self.rows * self.columns, self.quad, *rest)
