"""MQT: learned queries read the patches, and the first m of them suffice for any m.

"Matryoshka Query Transformer for Large Vision-Language Models", arXiv:2405.19315, NeurIPS 2024. Replaces the
projector. In the released code the keys are grid positions only, so the weights depend on the queries but not on the
image: a learned pooling of the normalised patches, per head. In training the number of queries is drawn for every step,
the same for the whole batch; only the next-token loss is used. Queries do not attend to each other, so the first m
tokens are the same for any count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jtok.checkpoints import rules
from jtok.errors import UserError
from jtok.layers.query_attention import QueryAttention
from jtok.layers.resize import resize_grid, sine_grid
from jtok.plan import Plan
from jtok.registry import Claim, method
from jtok.slots import Training
from jtok.target import Target
from jtok.tokens import Tokens


class QueryTransformer(nnx.Module):
    """At most `queries` tokens, a square number, from features of `width` to `out`; computes in float32."""

    layers_read: Sequence[int] = ()
    fixed_names = ("pos_embed",)  # a tensor of the released file that `places` computes

    def __init__(self, width: int, out: int, queries: int, heads: int, rngs: nnx.Rngs):
        self.side = math.isqrt(queries)
        normal = nnx.initializers.normal(0.02)
        self.query = nnx.Param(normal(rngs.params(), (queries, width)))
        self.query_norm, self.key_norm, self.value_norm = (nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs) for _ in "qkv")
        self.attention = QueryAttention(width, heads, rngs)
        self.project = nnx.Param(nnx.initializers.normal(out**-0.5)(rngs.params(), (width, out)))

    @property
    def names(self) -> list[rules.Rule]:
        """The authors' names."""
        table = [rules.table("query", "query"), rules.table("proj", "project")]
        for part, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            table += rules.norm(f"ln_{part}", f"{ours}_norm")
        return table + rules.attention("attn", "attention")

    def places(self, grid: tuple[int, int]) -> tuple[Float[Array, "M D"], Float[Array, "N D"]]:
        """(sine rows of the queries, the same table resized to the patches' grid); the table is kept in half precision.

        Queries take the table's rows in order, so each has its own position.
        """
        table = sine_grid(self.side, self.side, self.query.shape[1])
        table = table.astype(jnp.float16).astype(jnp.float32)
        return table, resize_grid(table, (self.side, self.side), grid)

    def __call__(self, tokens: Tokens, taps: Sequence[Array] = (), count: int | Int[Array, ""] | None = None) -> Tokens:
        """Tokens of the first `count` queries; if `count` is an array, of all queries, with the rest as padding.

        A patch is owned by the query that gives it the largest weight, averaged over heads. Raises UserError for more
        tokens than there are queries, and unless the patches are the whole grid.
        """
        total, grid = self.query.shape[0], tokens.grid
        if tokens.count != grid[0] * grid[1]:
            raise UserError(f"the queries read all {grid[0]}x{grid[1]} patches: no reducer may be placed before them.")
        static = isinstance(count, int)
        if static and not 1 <= count <= total:
            raise UserError(f"mqt has {total} queries and cannot make {count} tokens: ask for 1 to {total}.")
        m = count if static else total
        at, patches = self.places(grid)
        q = self.query_norm(self.query[...][:m] + at[:m])
        v = self.value_norm(tokens.x.astype(jnp.float32))
        read, weights = self.attention(q, self.key_norm(patches), v)
        weights = jnp.broadcast_to(weights.mean(0), (v.shape[0], m, v.shape[1]))
        x = read @ self.project[...]
        if static or count is None:
            return tokens.mix(weights, x)
        used = jnp.broadcast_to(jnp.arange(m) < count, x.shape[:2])
        weights, x = (jnp.where(used[..., None], a, 0) for a in (weights, x))
        return tokens.mix(weights, x).replace(valid=used)


def draw_count(key: Array, queries: int) -> Int[Array, ""]:
    """An even number of at most `queries` tokens, drawn uniformly: how many a training step uses."""
    return 2 * jax.random.randint(key, (), 1, queries // 2 + 1)


@dataclasses.dataclass(frozen=True)
class DrawnCount:
    """A training step draws how many of the queries are used."""

    queries: int

    def __call__(self, plan: Plan, key: Array) -> list[Plan]:
        return [dataclasses.replace(plan, projector_count=draw_count(key, self.queries))]


@dataclasses.dataclass(frozen=True)
class AllQueries:
    """A training step uses all queries."""

    queries: int

    def __call__(self, plan: Plan, key: Array) -> list[Plan]:
        return [dataclasses.replace(plan, projector_count=self.queries)]


@method(
    name="mqt",
    title="Matryoshka Query Transformer for Large Vision-Language Models",
    paper="arXiv:2405.19315, NeurIPS 2024",
    family="vlm-projector",
    training="required",
    assignment="soft",
    site="the projector",
    idea="nested learned queries, their number chosen at inference",
    uses_position=True,
    claims=(
        Claim("MQT-LLaVA", "as good as LLaVA-1.5 (576 tokens) over 11 benchmarks", 256, metric="visual tokens"),
        Claim("MQT-LLaVA", "16 tokens, 8 times fewer TFLOPs", 2.4, metric="points lost on MMBench"),
        Claim("MQT-LLaVA", "2 tokens", 3, metric="points lost on ScienceQA (%)"),
        Claim("MQT-LLaVA", "2 tokens", 6, metric="points lost on MMMU (%)"),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    tokens: int | None = None,
    queries: int = 256,
    heads: int | None = None,
    stage: int = 2,
    rngs: nnx.Rngs | None = None,
) -> Plan:
    """Gives `tokens` of `queries` (a square number), or else `keep` of the patches, capped at the number of queries.

    heads: by default one per 64 features. stage: of training; the first uses all queries in every step, the second an
    even number drawn at random. Tokens are renumbered.
    """
    if queries < 4 or math.isqrt(queries) ** 2 != queries:
        raise UserError(f"mqt's queries form a square grid, and {queries} do not: ask for 64 or 256, say.")
    count = min(max(1, round(keep * target.patches)), queries) if tokens is None else tokens
    if not 1 <= count <= queries:
        raise UserError(f"mqt has {queries} queries and cannot make {count} tokens: ask for 1 to {queries}.")
    heads = max(1, target.width // 64) if heads is None else heads
    if target.width % heads:
        raise UserError(f"{heads} heads do not divide {target.width} features: give mqt another number.")
    if stage not in (1, 2):
        raise UserError(f"mqt is trained in two stages, and {stage} is neither: ask for 1 or 2.")
    module = QueryTransformer(target.width, target.language_width, queries, heads, rngs or nnx.Rngs(0))
    variants = AllQueries(queries) if stage == 1 else DrawnCount(queries)
    return Plan(projector=module, projector_count=count, positions="renumber", training=Training(variants=variants))
