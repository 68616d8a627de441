"""Token Cropr: each layer drops the patches that an auxiliary classifier's query attends to least.

"Token Cropr: Faster ViTs for Quite a Few Tasks", arXiv:2412.00965, CVPR 2025. A module after every block scores the
patches by the raw cross-attention logits of learned queries. The queries are trained through an auxiliary head on their
output, detached from the tower; the head is not run at inference. Last-layer fusion reinserts the dropped patches, with
the features they had when dropped, before the last block.
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

from jtok.errors import UserError
from jtok.ops import schedule, select
from jtok.ops.schedule import Asked
from jtok.plan import Plan, at_blocks
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.slots import Training
from jtok.target import Target
from jtok.tokens import Tokens


class CrossAttention(nnx.Module):
    """Learned queries that read the tokens. Without projections the tokens themselves are keys and values."""

    def __init__(
        self, width: int, heads: int, queries: int, pre_norm: bool, project: bool, rngs: nnx.Rngs, mlp_ratio: int = 4
    ):
        self.heads = heads
        self.queries = nnx.Param(0.02 * jax.random.normal(rngs.params(), (queries, width)))
        self.pre_norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs) if pre_norm else None
        names = ("q", "k", "v") if project else ()
        self.project = nnx.Dict({name: nnx.Linear(width, width, use_bias=False, rngs=rngs) for name in names})
        self.out = nnx.Linear(width, width, rngs=rngs) if heads > 1 else None
        self.norm = nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs)
        self.up = nnx.Linear(width, mlp_ratio * width, rngs=rngs)
        self.down = nnx.Linear(mlp_ratio * width, width, rngs=rngs)

    def _part(self, name: str, x: Array) -> Array:
        x = self.project[name](x) if name in self.project else x
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def logits(self, x: Float[Array, "B N D"]) -> Float[Array, "B H Q N"]:
        """Unscaled."""
        x = x.astype(jnp.float32)
        x = self.pre_norm(x) if self.pre_norm is not None else x
        return jnp.einsum("qhd,bnhd->bhqn", self._part("q", self.queries[...]), self._part("k", x))

    def read(self, x: Float[Array, "B N D"], tokens: Tokens) -> Float[Array, "B Q D"]:
        """What the queries read from the valid tokens, after an MLP."""
        logits = self.logits(x)
        x = x.astype(jnp.float32)
        x = self.pre_norm(x) if self.pre_norm is not None else x
        values = self._part("v", x)
        if tokens.valid is not None:
            logits = jnp.where(tokens.valid[:, None, None], logits, jnp.finfo(jnp.float32).min)
        y = jnp.einsum("bhqn,bnhd->bqhd", jax.nn.softmax(logits * values.shape[-1] ** -0.5, -1), values)
        y = y.reshape(*y.shape[:2], -1)
        y = self.out(y) if self.out is not None else y
        return y + self.down(jax.nn.gelu(self.up(self.norm(y)), approximate=False))


class Cropr(nnx.Module, Reducer):
    """Drops the `drop` patches of lowest score; the others are ordered best first.

    `memory["token-cropr"]` lists, by name, the token sets dropped so far and in training the auxiliary heads' logits
    [B,C] (with several queries [B,Q,C]).
    """

    def __init__(
        self,
        width: int,
        drop: int,
        classes: int,
        heads: int = 1,
        queries: int = 1,
        pre_norm: bool = False,
        project: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.drop = drop
        self.attention = CrossAttention(width, heads, queries, pre_norm, project, rngs)
        self.head_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs) if classes else None
        self.head = nnx.Linear(width, classes, rngs=rngs) if classes else None

    def count(self, patches: int) -> int:
        return patches - self.drop

    def score(self, tokens: Tokens, s: Signals, memory: Memory):
        """[B,N] logits summed over heads and queries."""
        return self.attention.logits(tokens.x).sum((1, 2))

    def predict(self, tokens: Tokens) -> Float[Array, "B C"] | Float[Array, "B Q C"]:
        """The auxiliary head's logits; no gradient reaches the tokens."""
        if self.head is None:
            raise UserError("token-cropr learns from class labels: the model needs a classifier (`classes` above 0).")
        y = self.head(self.head_norm(self.attention.read(jax.lax.stop_gradient(tokens.x), tokens)))
        return y[:, 0] if y.shape[1] == 1 else y

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        score = self.score(tokens, s, memory)[:, tokens.special :]
        order = select.top_k(score, patches.count, valid=patches.valid, order="score")
        keep = self.count(patches.count)
        past = memory.get("token-cropr", {"dropped": (), "logits": ()})
        now = {"dropped": (*past["dropped"], patches.take(order[:, keep:])), "logits": past["logits"]}
        if s.train:
            now["logits"] = (*past["logits"], self.predict(tokens))
        return special.concat(patches.take(order[:, :keep])), {**memory, "token-cropr": now}


@dataclasses.dataclass(frozen=True)
class LastLayerFusion(Reducer):
    """Appends the `dropped` patches to the others, group by group."""

    dropped: int

    def count(self, patches: int) -> int:
        return patches + self.dropped

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        for group in memory["token-cropr"]["dropped"]:
            tokens = tokens.concat(group)
        return tokens, memory


def losses(plan: Plan, output: Any, teacher: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Cross-entropy of every module's auxiliary head, summed."""
    labels = batch["label"]
    each = [
        optax.losses.softmax_cross_entropy_with_integer_labels(y, labels).mean()
        for y in output.memory["token-cropr"]["logits"]
    ]
    return {"auxiliary": sum(each)}


@method(
    name="token-cropr",
    title="Token Cropr: Faster ViTs for Quite a Few Tasks",
    paper="arXiv:2412.00965, CVPR 2025",
    family="vit-prune",
    training="required",
    assignment="none",
    site="every block but the last two, at the output; fusion before the last",
    idea="drop what auxiliary classifiers attend to least",
    claims=(
        Claim("MAE ViT-L", "8 dropped a layer, last-layer fusion (unpruned: 85.8)", 85.3),
        Claim("EVA02-L", "40 dropped a layer, last-layer fusion (unpruned: 56.8)", 56.7, metric="ADE20K mIoU (%)"),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    fusion: bool = True,
    heads: int = 1,
    pre_norm: bool = False,
    project: bool = False,
    rngs: nnx.Rngs | None = None,
    **asked: Unpack[Asked],
) -> Plan:
    """`keep` is the share of patches left after the last module has dropped its own; fusion then restores all.

    The authors' first module drops one more than the others: their 8 a layer is r=(9, 8, 8, ...). fusion: run the last
    block on all patches; without it there is one more module. heads, pre_norm, project: of the cross-attention.
    """
    rngs = rngs or nnx.Rngs(0)
    modules = target.depth - (2 if fusion else 1)
    if modules < 1:
        raise UserError(f"token-cropr needs at least {3 if fusion else 2} blocks, the tower has {target.depth}.")
    n = target.patches
    steps = schedule.make(n, modules, keep, asked, range(modules), first=0, fall="even", whole=round)
    removed = steps.removals(n)
    reducers = [Cropr(target.width, r, target.classes, heads, 1, pre_norm, project, rngs=rngs) for r in removed]
    sites = at_blocks(steps.blocks, "output", reducers)
    if fusion and reducers:
        sites |= at_blocks([target.depth - 1], "input", [LastLayerFusion(sum(removed))])
    return Plan(sites, training=Training(losses if reducers else None))
