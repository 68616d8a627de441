"""VisionZip: keep the patches that the class token attends to, merge the others into a few contextual tokens.

"VisionZip: Longer is Better but Not Necessary in Vision Language Models", arXiv:2412.04467, CVPR 2025. Needs no
training. It is placed after the tower and reads the class token's attention and the keys of the last layer (the one
whose features the language model receives). The class token is kept as a visual token. Of the patches that are not
dominant, evenly spaced ones become targets; each of the others joins the target whose key, averaged over heads, is most
similar, and a target becomes itself plus the mean of the patches that joined it. On a tower without a class token the
score is the attention received from all tokens.

Every crop of an image is reduced in the same way. The released code then puts the kept patches on the mosaic's grid
without newline tokens and without cropping its padding, followed by all class and contextual tokens; here newline
tokens stay, patches in the mosaic's padding are dropped, and a class or contextual token is placed where its crop
begins or its centre lies.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jtok import kernels
from jtok.errors import UserError
from jtok.ops import budget, select
from jtok.plan import Plan
from jtok.reducer import Memory, Reducer
from jtok.registry import Claim, method
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class VisionZip(Reducer):
    """`dominant` patches in spatial order, then `contextual` merged ones.

    keep_class: the class token becomes an ordinary token, so that it is not dropped after the tower. by_class: the
    score is the class token's attention, otherwise the attention received.
    """

    dominant: int
    contextual: int
    keep_class: bool = False
    by_class: bool = True

    @property
    def reads(self) -> tuple[str, ...]:
        """The attention that is the score, and keys."""
        return ("class_attention" if self.by_class else "attention_received", "keys")

    def count(self, patches: int) -> int:
        """Includes the class token if it becomes an ordinary one."""
        return min(self.dominant + self.contextual, patches) + int(self.keep_class)

    def score(self, tokens: Tokens, s: Signals, memory: Memory) -> Float[Array, "B N"]:
        """Summed over heads, as in the released code."""
        return s.class_attention.sum(1) if self.by_class else s.attention_received

    def best(self, tokens: Tokens, s: Signals) -> Int[Array, "B K"]:
        """The dominant patches, best first, indexed from the first patch."""
        score, valid = self.score(tokens, s, {}), tokens.mask()
        return select.top_k(score[:, tokens.special :], self.dominant, valid=valid[:, tokens.special :], order="score")

    def __call__(self, tokens: Tokens, s: Signals, memory: Memory) -> tuple[Tokens, Memory]:
        special, patches = tokens.split()
        if self.dominant + self.contextual < patches.count:
            best = select.ascending(self.best(tokens, s), patches.count)
            body = self._context(patches, s.keys[:, tokens.special :], best)
            body = patches.take(best).concat(body) if self.dominant else body
            tokens = special.concat(body)
        return (tokens.replace(special=0) if self.keep_class else tokens), memory

    def _context(self, patches: Tokens, keys: Float[Array, "B N H Dh"], best: Int[Array, "B K"]) -> Tokens:
        """The contextual tokens, merged from the patches that are not `best`."""
        n = patches.count
        rest = n - best.shape[1]
        others = select.member_index(~select.members(best, n) & patches.mask(), rest)  # padding last
        at = select.strided(rest, self.contextual) if self.contextual else []
        between = [i for i in range(rest) if i not in set(at)]
        targets, joining = others[:, jnp.asarray(at, int)], others[:, jnp.asarray(between, int)]
        metric = keys.astype(jnp.float32).mean(2)
        rows = (kernels.gather(metric, index) for index in (joining, targets))
        context = patches.take(targets)
        if not at or not between:
            return context
        similarity, match = kernels.nearest(*rows, metric="cosine", mask=context.valid)
        match = jnp.where(similarity > -jnp.inf, match, -1)
        return context.absorb(patches.take(joining), match, "add_mean")


@method(
    name="visionzip",
    title="VisionZip: Longer is Better but Not Necessary in Vision Language Models",
    paper="arXiv:2412.04467, CVPR 2025",
    family="vlm-encoder",
    training="none",
    assignment="hard",
    site="tower output",
    idea="keep attended patches, merge the rest into strided targets",
    uses_position=True,  # targets are evenly spaced in the order of the patches
    claims=(Claim("LLaVA-NeXT", "prefill", 8.0, metric="speed-up (times)"),),
)
def plan(target: Target, keep: float = 0.5, tokens: int | None = None, contextual: int | None = None) -> Plan:
    """`tokens` (or `keep`) counts all tokens of a crop that the language model receives, as in the paper.

    contextual: how many of them are merged (default: 5 of 32, the paper's 10 of 64 and 30 of 192); the class token is
    one of the others. Survivors are renumbered. Raises UserError if `contextual` exceeds what `tokens` allows.
    """
    total = budget.visual_tokens(target.patches, keep, tokens)
    contextual = total * 5 // 32 if contextual is None else contextual
    keep_class = bool(target.layers) and target.has_class and target.special == 1
    dominant = total - contextual - int(keep_class)
    if contextual < 0 or dominant < 0:
        raise UserError(f"visionzip cannot make {contextual} of its {total} tokens contextual: give fewer.")
    return Plan({"tower.output": VisionZip(dominant, contextual, keep_class, target.has_class)}, positions="renumber")
