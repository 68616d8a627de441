"""Vision transformer towers: ViT, DeiT, CLIP, SigLIP, SigLIP 2 and DINOv2 are settings of this one module.

Used functionally: `graphdef, params = nnx.split(model)` once, then `nnx.merge(graphdef, params)(images, plan)` inside
`jit`. Sources: ViT arXiv:2010.11929, DeiT arXiv:2012.12877, CLIP arXiv:2103.00020, SigLIP arXiv:2303.15343, SigLIP 2
arXiv:2502.14786, DINOv2 arXiv:2304.07193, registers arXiv:2309.16588.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jtok.errors import UserError
from jtok.layers.activations import Activation
from jtok.layers.block import Block
from jtok.layers.heads import AttentionPool
from jtok.layers.resize import resize_grid, sample_grid, sine_grid
from jtok.layers.stack import Run, Stage, run_blocks
from jtok.layers.stacked import stack_layers
from jtok.ops import select
from jtok.plan import Plan
from jtok.sites import TOWER_OUTPUT, Site, tower_sites
from jtok.slots import InputRule
from jtok.target import Target
from jtok.tokens import Tokens, from_features


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape and variant of a vision transformer."""

    image: int = 224  # side in pixels that the position table was made for
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp: int = 1536
    channels: int = 3
    classes: int = 0  # 0 = no classifier
    class_token: bool = True
    distill_token: bool = False
    registers: int = 0
    class_position: bool = True  # the position table has rows for class (and distillation) tokens
    table: int = 0  # side of the position table; 0 = image // patch
    antialias: bool = False  # how the table is resized (bicubic): the released models differ
    crop: bool = False  # pixels beyond the last whole patch are left out (SigLIP: 384 pixels, patch 14), else refused
    head: Literal["class", "distill", "mean", "mean_all", "map", "none"] = "class"  # mean_all: special tokens too
    act: Activation = "gelu"
    mlp_kind: Literal["mlp", "swiglu"] = "mlp"
    eps: float = 1e-6
    qkv_bias: bool = True
    patch_bias: bool = True
    pre_norm: bool = False  # CLIP normalises the embedded tokens
    layer_scale: bool = False
    final_norm: Literal["tokens", "pooled", "none"] = "tokens"  # CLIP normalises only the pooled class token
    packed: bool = False  # SigLIP 2: patches come packed, with a shape and a mask per image
    remat: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    any_size: ClassVar[bool] = False  # every image gives the same number of features

    @property
    def compute(self) -> Any:
        """dtype of activations; parameters are float32."""
        return jnp.dtype(self.dtype)

    @property
    def special(self) -> int:
        """Leading special tokens: class, distillation, registers."""
        return int(self.class_token) + int(self.distill_token) + self.registers

    @property
    def side(self) -> int:
        """Side of the position table, in patches."""
        return self.table or self.image // self.patch

    def target(self, image: int | None = None) -> Target:
        """Facts of this tower that methods read to make plans."""
        side = self.side if self.packed else _patches(image or self.image, self)
        return Target(self.depth, (side, side), self.width, self.heads, self.special, self.classes, self.class_token)

    def sites(self) -> list[Site]:
        """The tower's sites, in the order in which they are reached."""
        return tower_sites(self.depth)

    def fit(self, plan: Plan) -> Plan:
        """The plan unchanged: plans are made for these sites."""
        return plan

    def check(self, plan: Plan) -> None:
        """Raises UserError for a plan with sites in the tower that it does not have."""
        plan.part("tower").check(self.sites())

    def network(self, rngs: nnx.Rngs) -> ViT:
        """The tower with its arrays."""
        return ViT(self, rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ViTOutput:
    """Outputs of a tower; XLA removes those that are not read."""

    tokens: Tokens  # at the tower's output, after the final norm where the tower has one
    pooled: Float[Array, "B D"] | None
    logits: Float[Array, "B C"] | None  # float32
    distill_logits: Float[Array, "B C"] | None  # of the distillation head alone (DeiT)
    memory: dict[str, Any]
    hidden: list[Float[Array, "B N D"]] | None  # embedding and every block's output, if asked for
    stages: dict[str, Any]


jax.tree_util.register_dataclass(Stage, ["owner", "position", "score"], [])


class ViT(nnx.Module):
    """A vision transformer over [B,H,W,C] images (or packed patches [B,N,patch*patch*C])."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        c = self.config = config
        if c.width % c.heads:
            raise UserError(f"width {c.width} is not a multiple of {c.heads} heads: choose a width that is.")
        init = nnx.initializers.normal(0.02)
        self.patch = nnx.Linear(c.patch**2 * c.channels, c.width, use_bias=c.patch_bias, dtype=c.compute, rngs=rngs)
        leading = int(c.class_token) + int(c.distill_token) if c.class_position else 0
        # learned, but started at sines: training finds neighbours sooner (arXiv:2205.01580)
        self.position = nnx.Param(jnp.concatenate([jnp.zeros((leading, c.width)), sine_grid(c.side, c.side, c.width)]))
        self.special = nnx.Param(init(rngs.params(), (c.special, c.width))) if c.special else None
        self.pre_norm = nnx.LayerNorm(c.width, epsilon=c.eps, dtype=c.compute, rngs=rngs) if c.pre_norm else None
        self.blocks = stack_layers(lambda rngs: Block(c, rngs), c.depth, rngs)
        norm = c.final_norm != "none"  # features of a layer further down, as vision-language models take them
        self.norm = nnx.LayerNorm(c.width, epsilon=c.eps, dtype=c.compute, rngs=rngs) if norm else None
        self.pool = AttentionPool(c, rngs) if c.head == "map" else None
        zeros = {"kernel_init": nnx.initializers.zeros_init(), "dtype": jnp.float32, "rngs": rngs}
        self.head = nnx.Linear(c.width, c.classes, **zeros) if c.classes else None
        self.head_distill = nnx.Linear(c.width, c.classes, **zeros) if c.classes and c.head == "distill" else None

    def __call__(
        self,
        images: Float[Array, "B H W C"],
        plan: Plan | None = None,
        *,
        mask: Bool[Array, "B N"] | None = None,
        shapes: Int[Array, "B 2"] | None = None,
        key: Array | None = None,
        train: bool = False,
        hidden: bool = False,
        given: Mapping[str, Array] | None = None,
    ) -> ViTOutput:
        """Runs the tower with the plan's reducers in it.

        images: normalised pixels; for a packed tower patches [B,N,patch*patch*C] with `mask` [B,N] and `shapes` [B,2]
        (rows, columns). key: one PRNG key, or one per image [B] (default: the same fixed key for every image). given:
        signals from outside of the tower that reducers read, such as `text_embedding` [B,E].
        Raises UserError for image sides that are no multiple of the patch and for plans that do not fit.
        """
        c, plan = self.config, plan or Plan()
        if c.packed and plan.inputs is not None:
            raise UserError(
                f"'{plan.name}' chooses pixels, and a packed tower takes patches: choose before cutting them."
            )
        plan = plan if c.packed else plan.for_grid((_patches(images.shape[1], c), _patches(images.shape[2], c)))
        if plan.grid is not None:
            images = _downsample(images, plan.grid, c)
        if plan.inputs is not None and not isinstance(images, jax.core.Tracer):
            plan = plan.for_pixels(patchify(images, c.patch), (images.shape[1] // c.patch, images.shape[2] // c.patch))
        with jax.named_scope("tower.embed"):
            tokens = self._embed_packed(images, mask, shapes) if c.packed else self._embed(images, plan.inputs)
        run = Run(plan, tokens, tower_sites(c.depth), _keys(key, images.shape[0]), train, given=given or {})
        run.hidden = [tokens.x] if hidden else None
        run_blocks(self.blocks, c.depth, run, remat=c.remat)
        if c.final_norm == "tokens":
            run.tokens = run.tokens.replace(x=self.norm(run.tokens.x))
        run.reduce(TOWER_OUTPUT)
        with jax.named_scope("head"):
            pooled, logits, distill = self._classify(run.tokens)
        return ViTOutput(run.tokens, pooled, logits, distill, run.memory, run.hidden, run.stages)

    def _embed(self, images: Array, rule: InputRule | None) -> Tokens:
        """The embedded patches that the rule chooses, each at its place in the whole image."""
        c = self.config
        b, h, w, channels = images.shape
        grid = _patches(h, c), _patches(w, c)
        if channels != c.channels:
            raise UserError(f"images have {channels} channels, the model takes {c.channels}.")
        patches = patchify(images, c.patch)
        x = self.patch(patches.astype(c.compute))
        leading = c.special - c.registers  # special tokens that may have rows in the position table
        table = self.position[...]
        lead, body = (table[:leading], table[leading:]) if c.class_position else (jnp.zeros((leading, c.width)), table)
        x = x + resize_grid(body, (c.side, c.side), grid, c.antialias).astype(x.dtype)
        if c.special:
            special = self.special[...].at[:leading].add(lead)
            x = jnp.concatenate([jnp.broadcast_to(special.astype(x.dtype), (b, *special.shape)), x], 1)
        x = self.pre_norm(x) if self.pre_norm is not None else x
        tokens = from_features(x, grid, c.special)
        keep = None if rule is None else rule.keep(patches, grid)
        return tokens if keep is None else _chosen(tokens, keep, rule.count(keep.shape[1]))

    def _embed_packed(self, patches: Array, mask: Array | None, shapes: Array | None) -> Tokens:
        c = self.config
        if shapes is None:
            raise UserError("a packed tower needs `shapes` [B,2], the rows and columns of patches of every image.")
        n = patches.shape[1]
        x = self.patch(patches.astype(c.compute))
        x = x + sample_grid(self.position[...], (c.side, c.side), shapes, n).astype(x.dtype)
        tokens = from_features(x, (n,), 0, mask)
        rows = jnp.arange(n) // shapes[:, 1:], jnp.arange(n) % shapes[:, 1:]
        return tokens.replace(position=jnp.stack(rows, -1).astype(jnp.float32))

    def _classify(self, tokens: Tokens):
        c, x = self.config, tokens.x
        if c.head == "none":
            return None, None, None
        if c.head == "map":
            # decisions of a soft policy are 0 or 1: what was dropped is not pooled
            pooled = self.pool(x, tokens.valid if tokens.policy is None else tokens.mask() & (tokens.policy > 0.5))
        elif c.head in ("mean", "mean_all"):
            first = c.special if c.head == "mean" else 0
            weight = tokens.size * tokens.mask() * (1.0 if tokens.policy is None else tokens.policy)
            weight = weight[:, first:, None]
            pooled = (x[:, first:] * weight).sum(1) / jnp.maximum(weight.sum(1), 1e-6)
        else:
            pooled = x[:, 0]
        pooled = self.norm(pooled) if c.final_norm == "pooled" else pooled
        if self.head is None:
            return pooled, None, None
        logits = self.head(pooled.astype(jnp.float32))
        if self.head_distill is None:
            return pooled, logits, None
        distill = self.head_distill(x[:, 1].astype(jnp.float32))
        return pooled, (logits + distill) / 2, distill


def patchify(images: Float[Array, "B H W C"], side: int) -> Float[Array, "B N V"]:
    """Values of the patches of `side` pixels in raster order: rows, columns, channels; the remainder is cropped."""
    b, h, w, channels = images.shape
    rows, columns = h // side, w // side
    x = images[:, : rows * side, : columns * side].reshape(b, rows, side, columns, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, -1)


def _chosen(tokens: Tokens, keep: Bool[Array, "B N"], slots: int) -> Tokens:
    """The special tokens and the patches to keep, in `slots` slots; those that are filled are valid."""
    special, patches = tokens.split()
    index = select.member_index(keep, slots)
    return special.concat(patches.take(index, jnp.arange(slots) < keep.sum(1, keepdims=True)))


def _patches(side: int, c: ViTConfig) -> int:
    if side % c.patch and not (c.crop and side > c.patch):
        near = max(c.patch, round(side / c.patch) * c.patch)
        raise UserError(f"an image side of {side} pixels is not a multiple of the patch ({c.patch}): {near} would be.")
    return side // c.patch


def _downsample(images: Array, grid: tuple[int, int], c: ViTConfig) -> Array:
    if c.packed:
        raise UserError("a packed tower takes patches, not pixels: downsample the image before cutting it.")
    b, _, _, channels = images.shape
    return jax.image.resize(images, (b, grid[0] * c.patch, grid[1] * c.patch, channels), "linear", antialias=True)


def _keys(key: Array | None, batch: int) -> Array:
    if key is None:
        return jnp.broadcast_to(jax.random.key(0), (batch,))
    return key if key.ndim else jax.random.split(key, batch)
