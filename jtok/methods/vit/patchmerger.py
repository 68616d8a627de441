"""PatchMerger: a few learned queries attend to the patches, and their outputs are the new tokens.

"Learning to Merge Tokens in Vision Transformers", arXiv:2202.12015, 2022. It is placed between blocks and trained
with the model on the task loss alone. The *normalised* patches are averaged, without projection or residual.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jtok.ops import schedule
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


class PatchMerger(nnx.Module, Reducer):
    """softmax(Q LN(x)^T) LN(x) with `keep` learned queries Q; `scaled` divides the logits by sqrt(D)."""

    def __init__(self, width: int, keep: int, scaled: bool, rngs: nnx.Rngs):
        self.keep = keep
        self.scale = width**-0.5 if scaled else 1.0
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.queries = nnx.Param(jax.random.normal(rngs.params(), (keep, width)))

    def count(self, patches: int) -> int:
        return self.keep

    def weights(self, patches: Tokens) -> tuple[Float[Array, "B K N"], Float[Array, "B N D"]]:
        """(share of every patch in every new token, the normalised patches)."""
        x = self.norm(patches.x.astype(jnp.float32))
        logits = jnp.einsum("kd,bnd->bkn", self.queries[...], x) * self.scale
        if patches.valid is not None:
            logits = jnp.where(patches.valid[:, None], logits, jnp.finfo(jnp.float32).min)
        return jax.nn.softmax(logits, -1), x

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        weights, x = self.weights(patches)
        return special.concat(patches.mix(weights, jnp.einsum("bkn,bnd->bkd", weights, x))), memory


@method(
    name="patchmerger",
    title="Learning to Merge Tokens in Vision Transformers",
    paper="arXiv:2202.12015, 2022",
    family="vit-learned",
    training="required",
    assignment="soft",
    site="three blocks, at the input",
    idea="a few learned queries read the patches",
)
def plan(
    target: Target,
    keep: float = 0.5,
    scaled: bool = False,
    rngs: nnx.Rngs | None = None,
    **asked: Unpack[Asked],
) -> Plan:
    """`stages=1` merges once, after half of the blocks, as in the paper.

    scaled: divide the logits by sqrt(width), which the paper's formula does not.
    """
    rngs = rngs or nnx.Rngs(0)
    steps = schedule.make(target.patches, target.depth, keep, asked)
    reducers = [PatchMerger(target.width, k, scaled, rngs) for k in steps.counts]
    return Plan(at_blocks(steps.blocks, "input", reducers))
