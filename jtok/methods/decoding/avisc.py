"""AvisC: contrast the answer with that of a model left with the image tokens that draw attention whatever is asked.

"Don't Miss the Forest for the Trees: Attentional Vision Calibration for Large Vision Language Models",
arXiv:2405.17820. Needs no training. Of the layers that attend to the image most, the mean attention of the prompt's
last token singles out *blind* tokens, those more than `lamb` standard deviations above the mean. A second stream reads
the same prompt with the embeddings of all others masked, and its logits are subtracted at every step.
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
    """(1 + alpha) l - alpha l', where l' are the logits of the stream that reads only blind tokens.

    layer_gamma: the layers that attend to the image most are taken until they have this portion of what all layers
    give it. lamb: standard deviations above the mean from which a token is blind. scheme: what the embeddings of the
    others become; noise is standard normal. beta: a token less likely than this share of the likeliest cannot follow.
    """

    layer_gamma: float = 0.5
    lamb: float = 1.0
    scheme: Scheme = "zeros"
    alpha: float = 2.5
    beta: float = 0.1
    reads = ("last_token_attention",)
    contrasts = True

    def portions(self, attention: Float[Array, "layers B N"]) -> Float[Array, "layers B"]:
        """Each layer's part of the attention that all layers give to the image."""
        image = attention.sum(-1)
        return image / jnp.maximum(image.sum(0), 1e-30)

    def chosen(self, portion: Float[Array, "layers B"]) -> Bool[Array, "layers B"]:
        """The layers of largest portion, of which all but the last together stay below `layer_gamma`."""
        order = jnp.argsort(-portion, 0, stable=True)
        reached = jnp.cumsum(jnp.take_along_axis(portion, order, 0), 0)
        count = 1 + (reached < self.layer_gamma).sum(0)
        return jnp.argsort(order, 0) < count

    def masked(self, attention: Float[Array, "layers B N"], valid: Bool[Array, "B N"]) -> Bool[Array, "B N"]:
        """The tokens that are not blind; padding counts for nothing."""
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
    site="logits of every token of the answer",
    idea="subtract what the most attended image tokens say alone",
)
def plan(
    target: Target,
    layer_gamma: float = 0.5,
    lamb: float = 1.0,
    scheme: Scheme = "zeros",
    alpha: float = 2.5,
    beta: float = 0.1,
) -> Plan:
    """Options as of `Calibrate`; no token is removed, and every step runs the language model twice.

    Raises UserError for another scheme and for beta outside (0, 1].
    """
    if scheme not in get_args(Scheme):
        raise UserError(f"avisc cannot mask with '{scheme}': choose {', '.join(get_args(Scheme))}.")
    if not 0 < beta <= 1:
        raise UserError(f"avisc compares with the likeliest token by beta={beta}: choose above 0 and at most 1.")
    return Plan(decoding=Calibrate(layer_gamma, lamb, scheme, alpha, beta))
