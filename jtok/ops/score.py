"""How important is a token: attention rows and masked attention that reducers are scored with or trained through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

#: Stands for minus infinity where a whole row may be masked: its softmax is finite.
_NONE = -1e30


def attention_rows(
    q: Float[Array, "B R H Dh"],
    k: Float[Array, "B N H Dh"],
    *,
    bias: Float[Array, "B N"] | None = None,
    valid: Bool[Array, "B N"] | None = None,
) -> Float[Array, "B H R N"]:
    """Softmax probabilities of a few query rows, float32."""
    logits = jnp.einsum("brhd,bnhd->bhrn", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    logits = logits if bias is None else logits + bias[:, None, None]
    logits = logits if valid is None else jnp.where(valid[:, None, None], logits, -jnp.inf)
    return jax.nn.softmax(logits, -1)


def peak_received(
    q: Float[Array, "B N H Dh"],
    k: Float[Array, "B N Hk Dh"],
    rows: Int[Array, "B R"],
    weights: Float[Array, "B R"],
    *,
    valid: Bool[Array, "B N"],
    bias: Float[Array, "B N"] | None = None,
    causal: bool = False,
    block: int = 32,
) -> Float[Array, "B N"]:
    """Weighted sum over some query rows of the attention that each key receives, the largest over heads of each row.

    Probabilities are float32 and over all valid keys (with `causal` those up to the row). `block` rows are taken at a
    time, so that no more than B x H x block x N of them are in memory. Query heads share key heads as in grouped-query
    attention. A row of weight 0 counts for nothing, even if it attends to no key. Source: FitPrune (arXiv:2409.10197).
    """
    (b, n, _, d), shared = q.shape, k.shape[2]
    behind = -rows.shape[1] % block
    blocks = [
        jnp.moveaxis(jnp.pad(a, [(0, 0), (0, behind)]).reshape(b, -1, block), 1, 0) for a in (rows, weights)
    ]  # [blocks,B,block]
    keys = k.astype(jnp.float32)

    def add(total: Array, item: tuple[Array, Array]) -> tuple[Array, None]:
        index, weight = item
        picked = jnp.take_along_axis(q, index[..., None, None], 1).astype(jnp.float32)
        logits = jnp.einsum("brgsd,bmgd->bgsrm", picked.reshape(b, block, shared, -1, d), keys) * d**-0.5
        logits = logits if bias is None else logits + bias[:, None, None, None]
        sees = valid[:, None] & (jnp.arange(n) <= index[..., None] if causal else True)  # [B,block,N]
        p = jax.nn.softmax(jnp.where(sees[:, None, None], logits, _NONE), -1)
        peak = jnp.where(sees, p.max((1, 2)), 0.0)
        return total + jnp.einsum("brm,br->bm", peak, weight.astype(jnp.float32)), None

    return jax.lax.scan(add, jnp.zeros((b, n), jnp.float32), tuple(blocks))[0]


def policy_softmax(
    logits: Float[Array, "B H N N"], policy: Float[Array, "B N"], eps: float = 1e-6
) -> Float[Array, "B H N N"]:
    """Softmax in which key j counts `policy_j` (1 for a token's attention to itself), DynamicViT (arXiv:2106.02034).

    Multiplying rather than masking lets a straight-through keep decision receive gradients.
    """
    n = logits.shape[-1]
    allow = policy[:, None, None, :]
    allow = allow + (1.0 - allow) * jnp.eye(n, dtype=policy.dtype)
    e = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))) * allow
    return (e + eps / n) / (e.sum(-1, keepdims=True) + eps)


def policy_attention(
    q: Float[Array, "B N H Dh"],
    k: Float[Array, "B N H Dh"],
    v: Float[Array, "B N H Dh"],
    policy: Float[Array, "B N"],
    *,
    bias: Float[Array, "B N"] | None = None,
    valid: Bool[Array, "B N"] | None = None,
) -> tuple[Float[Array, "B N H Dh"], Float[Array, "B H N N"]]:
    """(output, probabilities) of attention under a soft keep policy. For training: it does hold the N x N matrix."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    logits = logits if bias is None else logits + bias[:, None, None]
    logits = logits if valid is None else jnp.where(valid[:, None, None], logits, -1e9)
    p = policy_softmax(logits, policy.astype(jnp.float32))
    return jnp.einsum("bhqk,bkhd->bqhd", p.astype(v.dtype), v), p
