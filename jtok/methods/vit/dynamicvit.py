"""DynamicViT: small predictors, trained with the model, decide which patches to keep.

"DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", arXiv:2106.02034, NeurIPS 2021. It is
placed before blocks 3, 6 and 9 of 12 and reads the patches entering the block. In training all patches stay in the
sequence and a sampled keep decision masks the attention to each (differentiably, by Gumbel-softmax); at inference the
patches with the highest keep probability are gathered, best first. Fine-tuned with a loss on the share kept and
distillation from the dense model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from jtok.ops import schedule, select
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.slots import Training
from jtok.target import Target
from jtok.tokens import Tokens, rename


class Predictor(nnx.Module):
    """Log-probabilities of keeping (channel 0) and dropping each patch, from itself and the mean of those kept."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        half, quarter = width // 2, width // 4
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.mix = nnx.Linear(width, 2 * half, rngs=rngs)
        self.down = nnx.List([nnx.Linear(2 * half, half, rngs=rngs), nnx.Linear(half, quarter, rngs=rngs)])
        self.out = nnx.Linear(quarter, 2, rngs=rngs)

    def __call__(self, x: Float[Array, "B N D"], kept: Float[Array, "B N"]) -> Float[Array, "B N 2"]:
        """`kept` weights the patches in the mean: 0 for those already dropped."""
        local, pooled = jnp.split(jax.nn.gelu(self.mix(self.norm(x.astype(jnp.float32))), approximate=False), 2, -1)
        weight = kept / jnp.maximum(kept.sum(1, keepdims=True), 1e-6)
        pooled = jnp.einsum("bn,bnd->bd", weight, pooled)[:, None]
        h = jnp.concatenate([local, jnp.broadcast_to(pooled, local.shape)], -1)
        for layer in self.down:
            h = jax.nn.gelu(layer(h), approximate=False)
        return jax.nn.log_softmax(self.out(h), -1)


class DynamicViT(nnx.Module, Reducer):
    """Keeps the `keep` patches that the predictor rates highest; in training, masks those it decides to drop.

    In training, `memory["dynamicvit"]` holds the share of patches kept at every stage so far, a tuple of [B].
    """

    def __init__(self, width: int, keep: int, stage: int, rngs: nnx.Rngs):
        self.keep, self.stage = keep, stage
        self.predictor = Predictor(width, rngs)

    def count(self, patches: int) -> int:
        return min(self.keep, patches)

    def score(self, tokens: Tokens, s: Signals, memory: Memory):
        """[B,N] log-probability of keeping; 0 for special tokens."""
        return jnp.pad(self._log_odds(tokens)[..., 0], ((0, 0), (tokens.special, 0)))

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        if s.train:
            return self._mask(tokens, s, memory)
        special, patches = tokens.split()
        score = self._log_odds(tokens)[..., 0]
        index = select.top_k(score, self.count(patches.count), valid=patches.valid, order="score")
        return special.concat(patches.take(index)), memory

    def _log_odds(self, tokens: Tokens):
        return self.predictor(tokens.x[:, tokens.special :], self._kept(tokens))

    def _kept(self, tokens: Tokens):
        kept = tokens.mask() if tokens.policy is None else tokens.mask() * tokens.policy
        return kept[:, tokens.special :].astype(jnp.float32)

    def _mask(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        log_odds = self._log_odds(tokens)
        draw = jax.vmap(lambda key: jax.random.gumbel(jax.random.fold_in(key, self.stage), log_odds.shape[1:]))
        decision = select.gumbel_keep(log_odds, draw(s.key)) * self._kept(tokens)
        policy = jnp.pad(decision, ((0, 0), (tokens.special, 0)), constant_values=1.0)
        real = tokens.mask()[:, tokens.special :].sum(1)
        share = decision.sum(1) / jnp.maximum(real, 1)
        holder = jnp.where(policy > 0.5, jnp.arange(tokens.count), -1)
        tokens = tokens.replace(policy=policy, owner=rename(tokens.owner, holder))
        return tokens, {**memory, "dynamicvit": (*memory.get("dynamicvit", ()), share)}


@dataclasses.dataclass(frozen=True)
class Losses:
    """The paper's losses in addition to cross-entropy, each times its weight.

    ratio: mean squared gap between the share kept and its target; logits: KL divergence from the dense teacher; tokens:
    mean squared gap to the teacher's final patch features where the patch is still kept.
    """

    rates: tuple[float, ...]
    ratio: float
    logits: float
    tokens: float

    def __call__(self, plan: Plan, output: Any, teacher: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        shares = jnp.stack(output.memory["dynamicvit"])
        ratio = jnp.square(shares - jnp.asarray(self.rates)[:, None]).mean()
        student, dense = jax.nn.log_softmax(output.logits), jax.nn.log_softmax(teacher.logits)
        divergence = optax.losses.kl_divergence_with_log_targets(student, dense).mean()
        kept = (output.tokens.policy > 0.5)[:, output.tokens.special :, None]
        gap = jnp.square((output.tokens.x - teacher.tokens.x)[:, output.tokens.special :].astype(jnp.float32))
        features = (gap * kept).sum() / jnp.maximum(kept.sum() * gap.shape[-1], 1)
        return {"ratio": self.ratio * ratio, "distill": self.logits * divergence, "features": self.tokens * features}


@method(
    name="dynamicvit",
    title="DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
    paper="arXiv:2106.02034, NeurIPS 2021",
    family="vit-prune",
    training="required",
    assignment="none",
    site="three blocks, at the input",
    idea="a trained predictor decides which patches to keep",
    claims=(
        Claim("DeiT-S", "keep 0.7 a stage", 79.32, gmacs=2.9),
        Claim("DeiT-B", "keep 0.7 a stage", 81.43, gmacs=11.4),
        Claim("LV-ViT-S", "keep 0.7 a stage", 83.08, gmacs=4.6),
        Claim("LV-ViT-M", "keep 0.7 a stage", 83.82, gmacs=8.5),
        Claim("DeiT-256", "keep 0.7 a stage", 76.53),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    ratio_weight: float = 2.0,
    logits_weight: float = 0.5,
    tokens_weight: float = 0.5,
    rngs: nnx.Rngs | None = None,
    **asked: Unpack[Asked],
) -> Plan:
    """The paper's keep rate 0.7 is rates=(0.7, 0.49, 0.343). The weights are those of its losses."""
    rngs = rngs or nnx.Rngs(0)
    steps = schedule.make(target.patches, target.depth, keep, asked)
    reducers = [DynamicViT(target.width, k, i, rngs) for i, k in enumerate(steps.counts)]
    losses = Losses(steps.shares, ratio_weight, logits_weight, tokens_weight)
    return Plan(at_blocks(steps.blocks, "input", reducers), training=Training(losses, needs_teacher=True))
