"""Transformer blocks without a tower around them: what encoders and decoders of 1-D tokenizers are made of."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Bool, Float

from jtok.layers.block import Block
from jtok.layers.stack import Run, run_blocks
from jtok.layers.stacked import stack_layers
from jtok.models.towers.vit import ViTConfig
from jtok.plan import Plan
from jtok.sites import tower_sites
from jtok.tokens import from_features


class Trunk(nnx.Module):
    """`depth` pre-norm blocks [width], exact GELU, layer norms of eps 1e-5 (CLIP's), stacked and scanned."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        rngs: nnx.Rngs,
        *,
        mlp_ratio: int = 4,
        dtype="float32",
        remat: bool = False,
    ):
        config = ViTConfig(width=width, depth=depth, heads=heads, mlp=mlp_ratio * width, eps=1e-5, dtype=dtype)
        self.depth, self.remat = depth, remat
        self.blocks = stack_layers(lambda rngs: Block(config, rngs), depth, rngs)

    def __call__(
        self, x: Float[Array, "B N D"], valid: Bool[Array, "B N"] | None = None, plan: Plan | None = None
    ) -> Float[Array, "B N D"]:
        """valid: tokens that others attend to (default: all). plan: reducers at `trunk.block.i.*`, if any."""
        run = Run(plan or Plan(), from_features(x, (x.shape[1],), 0, valid), tower_sites(self.depth, "trunk"), slots=())
        return run_blocks(self.blocks, self.depth, run, prefix="trunk", remat=self.remat).tokens.x
