"""How important is a token: attention rows and masked attention that reducers are scored with or trained through."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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
