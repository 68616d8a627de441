"""TokenPacker: a coarse query per window of patches reads the window's details from several tower layers.

"TokenPacker: Efficient Visual Projector for Multimodal LLM", arXiv:2407.02392, IJCV 2025. Replaces the projector
and is trained with the language model on the next-token loss alone. The query is the patch grid resized to one token
per window; it determines the attention weights but is not added to the result (as in the released code, although the
paper speaks of updating the query).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jtok.checkpoints import rules
from jtok.errors import UserError
from jtok.layers.mlp import MLP
from jtok.layers.query_attention import QueryAttention
from jtok.ops import budget
from jtok.plan import Plan
from jtok.registry import Claim, method
from jtok.target import Target
from jtok.tokens import Tokens

#: Outputs of CLIP ViT-L/14's first 23 blocks that are read, 0 being the embedding.
LAYERS = (12, 16, 22, 23)


class TokenPacker(nnx.Module):
    """One token for every `scale` x `scale` patches, from features of `width` to `out`; computes in float32."""

    def __init__(self, width: int, out: int, scale: int, heads: int, layers: Sequence[int], rngs: nnx.Rngs):
        self.scale, self.layers_read = scale, tuple(layers)
        inputs = width * len(self.layers_read)
        normal = nnx.initializers.normal(0.02)
        self.query = nnx.Linear(width, width, use_bias=False, kernel_init=normal, rngs=rngs)
        init = {"kernel_init": normal, "rngs": rngs}
        self.key, self.value = (MLP(inputs, width, width, **init) for _ in "kv")
        self.query_norm, self.key_norm, self.value_norm = (nnx.LayerNorm(width, epsilon=1e-6, rngs=rngs) for _ in "qkv")
        self.attention = QueryAttention(width, heads, rngs)
        self.project = MLP(width, out, out, **init)

    @property
    def names(self) -> list[rules.Rule]:
        """The authors' names."""
        table = rules.linear("q_proj_1", "query")
        for theirs, ours in (("k_proj_1", "key"), ("v_proj_1", "value"), ("mlp", "project")):
            table += rules.linear(f"{theirs}.0", f"{ours}.up")
            table += rules.linear(f"{theirs}.2", f"{ours}.down")
        for part, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            table += rules.norm(f"ln_{part}_1", f"{ours}_norm")
        return table + rules.attention("clip_attn", "attention")

    def __call__(self, tokens: Tokens, taps: Sequence[Float[Array, "B N D"]], count: int | None = None) -> Tokens:
        """Raises UserError unless the tokens are the whole grid and windows tile it."""
        rows, columns = tokens.grid
        s, cells = self.scale, (rows // self.scale, columns // self.scale)
        num = cells[0] * cells[1]
        if rows % s or columns % s or count not in (None, num):
            raise UserError(f"windows of {s}x{s} do not make {count or num} tokens of {rows}x{columns} patches.")
        table = np.arange(rows)[:, None] // s * cells[1] + np.arange(columns) // s
        packed = tokens.pool(table, num)
        b, n, width = tokens.x.shape
        coarse = tokens.x.astype(jnp.float32).reshape(b, rows, columns, width)
        coarse = jax.image.resize(coarse, (b, *cells, width), "linear", antialias=False).reshape(b, num, 1, width)
        detail = jnp.concatenate([tap.astype(jnp.float32) for tap in taps], -1)
        k, v = (norm(part(detail)) for norm, part in ((self.key_norm, self.key), (self.value_norm, self.value)))
        k, v = (a.reshape(b, cells[0], s, cells[1], s, width).swapaxes(2, 3) for a in (k, v))
        k, v = (a.reshape(b, num, s * s, width) for a in (k, v))
        read, _ = self.attention(self.query_norm(self.query(coarse)), k, v)
        return packed.replace(x=self.project(read[:, :, 0]))


@method(
    name="tokenpacker",
    title="TokenPacker: Efficient Visual Projector for Multimodal LLM",
    paper="arXiv:2407.02392, IJCV 2025",
    family="vlm-projector",
    training="required",
    assignment="hard",
    site="the projector",
    idea="coarse queries read their windows from several layers",
    uses_position=True,
    claims=(
        Claim("TokenPacker", "comparable or better accuracy, the least", 75, metric="visual tokens saved (%)"),
        Claim("TokenPacker", "comparable or better accuracy, the most", 89, metric="visual tokens saved (%)"),
    ),
)
def plan(
    target: Target,
    keep: float = 0.5,
    tokens: int | None = None,
    scale: int | None = None,
    layers: Sequence[int] | None = None,
    heads: int | None = None,
    rngs: nnx.Rngs | None = None,
) -> Plan:
    """Windows of 2x2, 3x3 or 4x4 patches, as `tokens` (144, 64 or 36 of 576) or `keep` requires, or of side `scale`.

    layers: outputs of tower blocks that are read, 0 being the embedding; by default those at the relative depths
    of the released model. heads: by default one per 128 features. Tokens are renumbered.
    """
    sides = (2, 3, 4) if scale is None else (scale,)
    rows, columns = target.grid
    possible = {rows * columns // s**2: s for s in sides if s > 0 and not (rows % s or columns % s)}
    if not possible:
        raise UserError(f"tokenpacker's windows of side {sides} do not divide {rows}x{columns} patches: give scale=.")
    count = budget.nearest_count("tokenpacker", list(possible), target.patches, keep, tokens)
    layers = tuple(round(i * target.depth / LAYERS[-1]) for i in LAYERS) if layers is None else tuple(layers)
    if not layers or not all(0 <= i <= target.depth for i in layers):
        raise UserError(f"tokenpacker reads tower layers {layers}: they must lie between 0 and {target.depth}.")
    heads = max(1, target.width // 128) if heads is None else heads
    if target.width % heads:
        raise UserError(f"{heads} heads do not divide {target.width} features: give tokenpacker another number.")
    packer = TokenPacker(target.width, target.language_width, possible[count], heads, layers, rngs or nnx.Rngs(0))
    return Plan(projector=packer, projector_count=count, positions="renumber")
