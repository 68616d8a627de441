"""Sinkhorn token pooling: distribute patches over learned cluster vectors by entropic optimal transport.

The tokenizer of "Multi-Scale Hybrid Vision Transformer and Sinkhorn Tokenizer for Sewer Defect Classification",
Automation in Construction 2022, as a reducer in "Which Tokens to Use?", arXiv:2308.04657. It is placed before blocks 3,
6 and 9 of 12 and trained with the model on the task loss. New tokens are *sums* of unit-length patches (about N/K of
them), as in the authors' code: a patch's weights sum to one over the clusters.
"""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jtok.ops import schedule
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


def unit(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Rows divided by their norm (at least 1e-12), float32."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def transport(
    logits: Float[Array, "B K N"], iterations: int, valid: Bool[Array, "B N"] | None = None
) -> Float[Array, "B K N"]:
    """Weights after `iterations` Sinkhorn steps towards equal masses, rows first; columns of valid tokens sum to one.

    All row and column masses are 1/(K+N): the two marginals have different totals, so this never converges, and the
    number of iterations and their order matter.
    """
    k, n = logits.shape[1:]
    valid = jnp.ones((logits.shape[0], n), bool) if valid is None else valid
    columns = valid[:, None]
    low = jnp.finfo(jnp.float32).min
    norm = jnp.log(k + valid.sum(1).astype(jnp.float32))[:, None, None]
    a, b = jnp.zeros((*logits.shape[:2], 1)), jnp.zeros((logits.shape[0], 1, n))
    for _ in range(iterations):
        a = -norm - jax.nn.logsumexp(jnp.where(columns, logits + b, low), 2, keepdims=True)
        b = -norm - jax.nn.logsumexp(logits + a, 1, keepdims=True)
    return jnp.where(columns, jnp.exp(logits + a + b + norm), 0)


class Sinkhorn(nnx.Module, Reducer):
    """Mixes the patches into `keep` tokens around learned unit vectors; `temperature` is that of the entropic term.

    The authors write the normalised vectors back into the parameter at every forward pass; a pure function cannot, so
    here the gradient passes through the normalisation, which is the same step to first order.
    """

    def __init__(self, width: int, keep: int, temperature: float, iterations: int, rngs: nnx.Rngs):
        self.keep, self.temperature, self.iterations = keep, temperature, iterations
        self.vectors = nnx.Param(unit(jax.random.normal(rngs.params(), (keep, width))))

    def count(self, patches: int) -> int:
        return self.keep

    def weights(self, x: Float[Array, "B N D"], valid: Bool[Array, "B N"] | None = None) -> Float[Array, "B K N"]:
        """Share of every patch (unit rows `x`) that goes to every new token."""
        logits = jnp.einsum("kd,bnd->bkn", unit(self.vectors[...]), x) / self.temperature
        return transport(logits, self.iterations, valid)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        x = unit(patches.x)
        weights = self.weights(x, patches.valid)
        return special.concat(patches.mix(weights, jnp.einsum("bkn,bnd->bkd", weights, x))), memory


@method(
    name="sinkhorn",
    title="Multi-Scale Hybrid Vision Transformer and Sinkhorn Tokenizer for Sewer Defect Classification",
    paper="Automation in Construction 2022; arXiv:2308.04657",
    family="vit-learned",
    training="required",
    assignment="soft",
    site="three blocks, at the input",
    idea="assign patches to learned vectors by optimal transport",
)
def plan(
    target: Target,
    keep: float = 0.5,
    temperature: float = 1.0,
    iterations: int = 3,
    rngs: nnx.Rngs | None = None,
    **asked: Unpack[Asked],
) -> Plan:
    """`temperature` divides the similarities; `iterations` of row and column normalisation."""
    rngs = rngs or nnx.Rngs(0)
    steps = schedule.make(target.patches, target.depth, keep, asked)
    reducers = [Sinkhorn(target.width, k, temperature, iterations, rngs) for k in steps.counts]
    return Plan(at_blocks(steps.blocks, "input", reducers))
