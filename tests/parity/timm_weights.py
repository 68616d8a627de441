"""Blocks and towers of jtok with the weights of a timm-named state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jtok.layers.block import Block
from jtok.models.towers.vit import ViT, ViTConfig
from jtok.reducer import Reducer
from jtok.signals import Signals
from jtok.tokens import from_features

Weights = Mapping[str, np.ndarray]


def block(weights: Weights, heads: int, eps: float) -> Block:
    """One block; `weights` are named norm1.weight, attn.qkv.weight, ..."""
    width = weights["norm1.weight"].shape[0]
    config = ViTConfig(width=width, heads=heads, mlp=weights["mlp.fc1.weight"].shape[0], eps=eps)
    return fill(lambda: Block(config, nnx.Rngs(0)), _block(weights, "", heads))


def vit(weights: Weights, heads: int, patch: int, eps: float) -> ViT:
    """A whole tower with a linear head on its class token, or on the mean of all tokens where there is a fc_norm."""
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    own = weights["cls_token"].shape[1]
    side = round((weights["pos_embed"].shape[1] - own) ** 0.5)
    kernel = weights["patch_embed.proj.weight"]
    averaged = {"head": "mean_all", "final_norm": "pooled"} if "fc_norm.weight" in weights else {}
    config = ViTConfig(
        image=side * patch, patch=patch, width=kernel.shape[0], depth=depth, heads=heads,
        mlp=weights["blocks.0.mlp.fc1.weight"].shape[0], channels=kernel.shape[1],
        classes=weights["head.weight"].shape[0], eps=eps, **averaged,
    )  # fmt: skip
    blocks = [_block(weights, f"blocks.{i}.", heads) for i in range(depth)]
    params = {
        "patch": {
            "kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, config.width),
            "bias": weights["patch_embed.proj.bias"],
        },
        "position": weights["pos_embed"][0],
        "special": weights["cls_token"][0],
        "blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks),
        "norm": norm(weights, "fc_norm" if averaged else "norm"),
        "head": linear(weights, "head"),
    }
    return fill(lambda: ViT(config, nnx.Rngs(0)), params)


def reduce_in_block(layer: Block, x: np.ndarray, reducer: Reducer) -> tuple[np.ndarray, np.ndarray]:
    """(features after a block with `reducer` between its halves [B,N',D], slot of every patch among the patches, -1).

    The first token is a class token.
    """

    def run(x):
        tokens, signals = layer.attend(from_features(x, (x.shape[1] - 1,), 1), reducer.reads)
        tokens, _ = reducer(tokens, Signals(**signals), {})
        return layer.feed_forward(tokens).x, jnp.maximum(tokens.owner - 1, -1)

    return tuple(np.asarray(a) for a in jax.jit(run)(jnp.asarray(x)))


def holders(owner: np.ndarray, keep: int) -> np.ndarray:
    """For each of the first `keep` slots the one patch that it holds."""
    return np.stack([[np.flatnonzero(row == slot).item() for slot in range(keep)] for row in owner])


def _block(weights: Weights, prefix: str, heads: int) -> dict[str, Any]:
    return {
        "norm1": norm(weights, f"{prefix}norm1"),
        "attention": attention(weights, f"{prefix}attn.", heads),
        "norm2": norm(weights, f"{prefix}norm2"),
        "mlp": {"up": linear(weights, f"{prefix}mlp.fc1"), "down": linear(weights, f"{prefix}mlp.fc2")},
    }


def attention(weights: Weights, prefix: str, heads: int) -> dict[str, Any]:
    """Parameters of an `Attention`."""
    qkv, out = linear(weights, f"{prefix}qkv"), linear(weights, f"{prefix}proj")
    width = out["bias"].shape[0]
    shape = (3, heads, width // heads)
    return {
        "qkv": {"kernel": qkv["kernel"].reshape(width, *shape), "bias": qkv["bias"].reshape(shape)},
        "out": {"kernel": out["kernel"].reshape(*shape[1:], width), "bias": out["bias"]},
    }


def linear(weights: Weights, name: str) -> dict[str, np.ndarray]:
    """Parameters of an `nnx.Linear`."""
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def norm(weights: Weights, name: str) -> dict[str, np.ndarray]:
    """Parameters of an `nnx.LayerNorm`."""
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def fill(make, params: dict[str, Any]):
    """The module that `make` would build, holding `params`; raises ValueError where names or shapes do not agree."""
    graphdef, state = nnx.split(nnx.eval_shape(make), nnx.Param)
    want = jax.tree.map(lambda a: a.shape, nnx.to_pure_dict(state))
    have = jax.tree.map(lambda a: a.shape, params)
    if want != have:
        raise ValueError(f"the module takes {want}, the weights give {have}")
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, params))
    return nnx.merge(graphdef, state)
