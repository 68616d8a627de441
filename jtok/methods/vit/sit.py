"""SiT: slim patches into soft mixtures that are trained to reconstruct the dense model's patches.

"Self-slimmed Vision Transformer", arXiv:2111.12624, ECCV 2022. Token slimming modules are placed between blocks; class
and distillation tokens bypass them. In training, a reverse module after every later block recovers all patches from the
slimmed ones, which are compared with the dense teacher's patches of that layer (feature recalibration distillation).
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

from jtok.layers.mlp import MLP
from jtok.ops import schedule
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.slots import Training
from jtok.target import Target
from jtok.tokens import Tokens


class Recover(nnx.Module):
    """The reverse module: `keep` slimmed tokens back to all `patches`; hidden layers are `ratio` times as wide."""

    def __init__(self, width: int, keep: int, patches: int, ratio: float, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.over_tokens = MLP(keep, int(ratio * patches), patches, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.over_features = MLP(width, int(ratio * width), width, rngs=rngs)

    def __call__(self, y: Float[Array, "B K D"]) -> Float[Array, "B P D"]:
        """There is no skip over the first MLP, since it changes the number of tokens."""
        z = self.over_tokens(self.norm1(y.astype(jnp.float32)).swapaxes(1, 2)).swapaxes(1, 2)
        return z + self.over_features(self.norm2(z))


class SiT(nnx.Module, Reducer):
    """Mixes the patches into `keep` tokens; the weights of each token are a softmax over the patches.

    Also holds the reverse modules of the `layers` layers that see this many tokens, which only training uses; then
    `memory["sit"]` lists the output [B,keep,D] of every stage so far.
    """

    def __init__(self, target: Target, keep: int, layers: int, ratio: float, reverse_ratio: float, rngs: nnx.Rngs):
        self.keep = keep
        self.norm = nnx.LayerNorm(target.width, epsilon=1e-5, rngs=rngs)
        self.slim = MLP(target.width, int(target.width * ratio), keep, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))
        recover = [Recover(target.width, keep, target.patches, reverse_ratio, rngs) for _ in range(layers)]
        self.recover = nnx.List(recover)

    def count(self, patches: int) -> int:
        return self.keep

    def weights(self, patches: Tokens) -> Float[Array, "B K N"]:
        """Share of every patch in every new token; rows sum to one over the patches."""
        logits = self.slim(self.norm(patches.x.astype(jnp.float32))).swapaxes(1, 2) * self.scale[...]
        if patches.valid is not None:
            logits = jnp.where(patches.valid[:, None], logits, jnp.finfo(jnp.float32).min)
        return jax.nn.softmax(logits, -1)

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        slimmed = patches.mix(self.weights(patches))
        if s.train:
            memory = {**memory, "sit": (*memory.get("sit", ()), slimmed.x)}
        return special.concat(slimmed), memory


@dataclasses.dataclass(frozen=True)
class Losses:
    """Feature recalibration distillation: recovered patches and logits against the dense teacher's.

    patches: weight of the mean squared gap, averaged over the layers (those before the first slimming are compared
    directly); logits: weight of the KL divergence at `temperature`, times its square.
    """

    blocks: tuple[int, ...]
    patches: float
    logits: float
    temperature: float

    def __call__(self, plan: Plan, output: Any, teacher: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
        special = output.tokens.special
        layers = [h[:, special:].astype(jnp.float32) for h in output.hidden[1:]]
        dense = [h[:, special:].astype(jnp.float32) for h in teacher.hidden[1:]]
        for block, slimmed in zip(self.blocks, output.memory["sit"], strict=True):
            layers[block - 1] = slimmed  # the layer's output, as slimmed by the next block's module
            for layer, recover in enumerate(plan.at(f"tower.block.{block}.input").recover, block - 1):
                layers[layer] = recover(layers[layer])
        gaps = [jnp.square(a - b).mean() for a, b in zip(layers, dense, strict=True)]
        t = self.temperature
        student, target = jax.nn.log_softmax(output.logits / t), jax.nn.log_softmax(teacher.logits / t)
        divergence = optax.losses.kl_divergence_with_log_targets(student, target).mean()
        return {"recalibration": self.patches * jnp.stack(gaps).mean(), "distill": self.logits * t**2 * divergence}


@method(
    name="sit",
    title="Self-slimmed Vision Transformer",
    paper="arXiv:2111.12624, ECCV 2022",
    family="vit-learned",
    training="required",
    assignment="soft",
    site="three blocks, at the input",
    idea="learned patch mixtures, distilled from a dense teacher",
    claims=(
        Claim("SiT-T (LV-ViT)", "counts halved three times", 80.1, gmacs=1.0),
        Claim("SiT-XS (LV-ViT)", "counts halved three times", 81.2, gmacs=1.5),
        Claim("SiT-S (LV-ViT)", "counts halved three times", 83.1, gmacs=4.0),
        Claim("SiT-M (LV-ViT)", "counts halved three times", 84.2, gmacs=8.1),
        Claim("SiT-L (LV-ViT), 288 px", "counts halved three times", 85.6, gmacs=34.4),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    reverse_ratio: float = 4.0,
    patches_weight: float = 2.0,
    logits_weight: float = 2.0,
    temperature: float = 1.0,
    rngs: nnx.Rngs | None = None,
    **asked: Unpack[Asked],
) -> Plan:
    """The paper's rates are (0.5, 0.25, 0.125); its SiT-S, of 9 + 3 + 2 + 2 blocks, has blocks=(9, 12, 14).

    reverse_ratio: width of the reverse modules' hidden layers, in widths of the tower.
    """
    rngs = rngs or nnx.Rngs(0)
    steps = schedule.make(target.patches, target.depth, keep, asked)
    blocks = steps.blocks
    layers = [end - start for start, end in zip(blocks, (*blocks[1:], target.depth + 1), strict=True)]
    reducers = [SiT(target, k, n, 0.5, reverse_ratio, rngs) for k, n in zip(steps.counts, layers, strict=True)]
    losses = Losses(blocks, patches_weight, logits_weight, temperature)
    return Plan(at_blocks(blocks, "input", reducers), training=Training(losses, needs_teacher=True))
