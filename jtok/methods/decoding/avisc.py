"""AvisC: contrast the logits with those of a stream that sees only image tokens attended to whatever the question.

"Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large Vision Language Models",
arXiv:2405.17820. Needs no training. In the layers that attend to the image most, the prompt's last token singles out
*blind* tokens: those whose mean attention is more than `lamb` standard deviations above average. A second stream reads
the same prompt with the embeddings of all other image tokens masked, and its logits are subtracted at every step.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jtok.errors import UserError
from jtok.plan import Plan
from jtok.registry import method
from jtok.slots import DecodingRule
from jtok.target import Target
from jtok.tokens import Tokens

Scheme = Literal["zeros", "ones", "noise"]


@dataclasses.dataclass(frozen=True)
class Calibrate(DecodingRule):
    """(1 + alpha) l - alpha l', where l' are the logits of the stream that sees only the blind tokens.

    layer_gamma: layers are taken in decreasing order of their attention to the image until they hold this portion of
    the total. lamb: a token is blind from this many standard deviations above the mean. scheme: what replaces the
    embeddings of the others; noise is standard normal. beta: tokens less likely than beta times the likeliest one are
    excluded.
    """

    layer_gamma: float = 0.5
    lamb: float = 1.0
    scheme: Scheme = "zeros"
    alpha: float = 2.5
    beta: float = 0.1
    reads = ("last_token_attention",)
    contrasts = True

    def portions(self, attention: Float[Array, "layers B N"]) -> Float[Array, "layers B"]:
        """Each layer's share of the attention that all layers give to the image."""
        image = attention.sum(-1)
        return image / jnp.maximum(image.sum(0), 1e-30)

    def chosen(self, portion: Float[Array, "layers B"]) -> Bool[Array, "layers B"]:
        """The fewest layers, by decreasing portion, that together reach `layer_gamma`."""
        order = jnp.argsort(-portion, 0, stable=True)
        reached = jnp.cumsum(jnp.take_along_axis(portion, order, 0), 0)
        count = 1 + (reached < self.layer_gamma).sum(0)
        return jnp.argsort(order, 0) < count

    def masked(self, attention: Float[Array, "layers B N"], valid: Bool[Array, "B N"]) -> Bool[Array, "B N"]:
        """The tokens that are not blind; padding is ignored."""
        attention = jnp.where(valid, attention, 0)
        layers = self.chosen(self.portions(attention)).astype(jnp.float32)
        score = jnp.einsum("lbn,lb->bn", attention, layers) / layers.sum(0)[:, None]
        count = valid.sum(1, keepdims=True)
        mean = score.sum(1, keepdims=True) / jnp.maximum(count, 1)
        squares = jnp.where(valid, (score - mean) ** 2, 0).sum(1, keepdims=True)
        return (score < mean + self.lamb * jnp.sqrt(squares / jnp.maximum(count - 1, 1))) & valid

    def second_stream(self, tokens: Tokens, attention: Float[Array, "layers B N"], key: Array) -> Tokens:
        masked = self.masked(attention, tokens.mask())
        shape = tokens.x.shape[1:]
        if self.scheme == "noise":
            other = jax.vmap(lambda one: jax.random.normal(one, shape, tokens.x.dtype))(key)
        else:
            other = jnp.full_like(tokens.x, self.scheme == "ones")
        return tokens.replace(x=jnp.where(masked[..., None], other, tokens.x))

    def __call__(self, logits: Float[Array, "B V"], second: Float[Array, "B V"] | None) -> Float[Array, "B V"]:
        broken = jnp.isnan(second).any(-1, keepdims=True)
        second = jnp.where(broken, logits, second)
        cutoff = math.log(self.beta) + logits.max(-1, keepdims=True)
        return jnp.where(logits < cutoff, -jnp.inf, (1 + self.alpha) * logits - self.alpha * second)


@method(
    name="avisc",
    title="Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large Vision Language Models",
    paper="arXiv:2405.17820",
    family="decoding",
    training="none",
    assignment="none",
    site="logits at every decoding step",
    idea="contrast with logits from over-attended image tokens alone",
)
def plan(
    target: Target,
    layer_gamma: float = 0.5,
    lamb: float = 1.0,
    scheme: Scheme = "zeros",
    alpha: float = 2.5,
    beta: float = 0.1,
) -> Plan:
    """Options as in `Calibrate`; no token is removed, and every step runs the language model twice.

    Raises UserError for another scheme and for beta outside (0, 1].
    """
    if scheme not in get_args(Scheme):
        raise UserError(f"avisc cannot mask with '{scheme}': choose {', '.join(get_args(Scheme))}.")
    if not 0 < beta <= 1:
        raise UserError(f"avisc's beta is {beta}: choose one above 0 and at most 1.")
    return Plan(decoding=Calibrate(layer_gamma, lamb, scheme, alpha, beta))
