"""VAR: move text's attention from attention sinks to the other image tokens, in heads that attend to the image.

"See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025 (OpenReview 7uDI7w5RQA). Needs no
training. A sink is a token in which one of a few features of the residual stream is far larger than the rest. Where a
head's query attends strongly to the image, but little of that to its sinks, it keeps the share `p` of its attention to
all sinks; the rest is distributed over the non-sink image tokens, in proportion to the attention they already have.

Redistribution scales the attention to groups of keys by factors that depend only on batch, head and query, so the
output is a combination of fused calls over the values of one group each: no L x S array is materialised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.errors import UserError
from jtok.plan import Plan
from jtok.registry import method
from jtok.slots import Attending, AttentionRule
from jtok.target import Target

#: Features in which LLaMA-2's sinks are large, by the width of the model (7B and 13B), as listed in the paper.
LLAMA2_DIMS = {4096: (1415, 2533), 5120: (2100, 4743)}


class Masses(NamedTuple):
    """Attention that each query of each head gives to groups of keys, [B,L,H,1] in float32."""

    sinks: Array  # all sinks
    image: Array  # all image tokens
    image_sinks: Array


@dataclasses.dataclass(frozen=True)
class RedistributeSinks(AttentionRule):
    """Sinks are detected in the prompt, layer by layer, and stored as the mark `sink` for the answer.

    tau: a token is a sink if the magnitude of one of the features `dims` (None: any feature), relative to the root mean
    square of all, exceeds it. rho: largest share of a selected row's image attention that goes to sinks. summ: smallest
    attention to the image of a selected row. p: share of their attention that sinks keep.
    """

    tau: float = 20.0
    rho: float = 0.5
    summ: float = 0.2
    p: float = 0.6
    dims: tuple[int, ...] | None = None

    def layers(self, depth: int) -> range:
        """All but the first two, where sinks have not formed yet, and the last."""
        return range(2, max(2, depth - 1))

    def sinks(self, x: Float[Array, "B L D"], valid: Bool[Array, "B L"]) -> Bool[Array, "B L"]:
        """Which tokens are sinks, from the layer's input."""
        x = x.astype(jnp.float32)
        level = jnp.abs(x) / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)
        level = level if self.dims is None else level[..., jnp.asarray(self.dims)]
        return (level.max(-1) > self.tau) & valid

    def masses(self, a: Attending, sink: Bool[Array, "B S"], attend: Callable[..., Array]) -> Masses:
        """Attention to groups, from one fused call whose values indicate the groups of each key."""
        groups = jnp.stack([sink, a.visual, sink & a.visual], -1)[:, :, None].astype(a.v.dtype)
        groups = jnp.broadcast_to(groups, (*a.v.shape[:3], 3))
        sums = attend(jnp.pad(groups, [(0, 0)] * 3 + [(0, a.v.shape[-1] - 3)])).astype(jnp.float32)
        return Masses(*(sums[..., i : i + 1] for i in range(3)))

    def selected(self, a: Attending, sink: Bool[Array, "B S"], mass: Masses) -> Bool[Array, "B L H 1"]:
        """Which heads of which queries meet the paper's criteria; none where the image has no sink."""
        image = a.visual[:, None, None].sum(-1, keepdims=True)
        portion = mass.image_sinks / (mass.image + 1e-6 * image)
        has_sink = (sink & a.visual).any(1)[:, None, None, None]
        return (portion <= self.rho) & (mass.image >= self.summ) & has_sink

    def __call__(self, a: Attending, attend: Callable[..., Array]) -> tuple[Array, dict[str, Array]]:
        sink = self.sinks(a.x, a.valid) if a.marks is None else a.marks["sink"]
        mass = self.masses(a, sink, attend)
        plain = a.visual & ~sink

        def attended(keys: Bool[Array, "B S"]) -> Array:
            return attend(jnp.where(keys[..., None, None], a.v, 0)).astype(jnp.float32)

        plain_mass = mass.image - mass.image_sinks
        chosen = self.selected(a, sink, mass) & a.after_image[..., None, None] & (plain_mass > 0)
        taken = jnp.where(chosen, 1 - self.p, 0)  # share of the sinks' attention
        given = taken * mass.sinks / jnp.where(chosen, plain_mass, 1)
        y = attend(a.v)
        changed = y + given * attended(plain) - taken * attended(sink)
        return changed.astype(y.dtype), {"sink": sink}


@method(
    name="var-attention-sink",
    title="See What You Are Told: Visual Attention Sink in Large Multimodal Models",
    paper="ICLR 2025, OpenReview 7uDI7w5RQA",
    family="attention",
    training="none",
    assignment="none",
    site="attention of all language-model layers except the first two and the last",
    idea="move attention from sinks to other image tokens",
)
def plan(
    target: Target,
    tau: float = 20.0,
    rho: float = 0.5,
    summ: float = 0.2,
    p: float = 0.6,
    dims: Sequence[int] | None = None,
) -> Plan:
    """Options as in `RedistributeSinks`; no token is removed.

    dims: default those of LLaMA-2 for its widths, 4096 and 5120, and any feature for other models. Raises UserError for
    features that the model does not have and for a share p outside [0, 1].
    """
    width = target.language_width
    dims = LLAMA2_DIMS.get(width) if dims is None else tuple(dims)
    if dims is not None and not (dims and all(0 <= d < width for d in dims)):
        raise UserError(f"var-attention-sink cannot read the features dims={dims}: choose from 0 to {width - 1}.")
    if not 0 <= p <= 1:
        raise UserError(f"var-attention-sink cannot leave the share p={p} to sinks: choose one from 0 to 1.")
    return Plan(attention=RedistributeSinks(tau, rho, summ, p, dims))
