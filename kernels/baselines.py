"""What the kernels are timed against: the same work as PyTorch users write it, and attention without the scores.

A baseline is made from a shape of the op's `shapes.py` and takes the op's arrays. PyTorch's are absent where it is not
installed; they run on the CPU, or on a CUDA device where PyTorch sees one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtok.kernels.attention_scores import attention_scores


def baselines(op: str, shape: Any, arrays: tuple[jax.Array, ...]) -> dict[str, Callable[[], Any]]:
    """Name -> call without arguments that returns when the work is done or returns jax arrays."""
    calls = {name: _jax_call(make(shape), arrays) for name, make in JAX.get(op, {}).items()}
    if importlib.util.find_spec("torch") is None:
        return calls
    return calls | {name: _torch_call(make(shape), arrays) for name, make in TORCH.get(op, {}).items()}


def _jax_call(function, arrays):
    compiled = jax.jit(function)
    return lambda: compiled(*arrays)


def _torch_call(function, arrays):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensors = [_tensor(x).to(device) for x in arrays]

    def call():
        with torch.no_grad():
            function(*tensors)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def _tensor(x: jax.Array):
    import torch

    if jnp.issubdtype(x.dtype, jnp.integer):
        return torch.from_numpy(np.array(x)).long()
    return torch.from_numpy(np.array(x.astype(jnp.float32))).to(getattr(torch, x.dtype.name))


def _scoring_off(shape):
    return lambda q, k, v: attention_scores(q, k, v, causal=shape.causal).out


def _materialised(shape):
    def run(q, k, v):
        share, m, n = shape.heads // shape.key_heads, shape.m, shape.n
        s = jnp.einsum("bnhd,bmhd->bhnm", q, jnp.repeat(k, share, 2), preferred_element_type=jnp.float32)
        visible = jnp.arange(m) <= jnp.arange(n)[:, None] + m - n if shape.causal else True
        p = jax.nn.softmax(jnp.where(visible, s * shape.d**-0.5, -jnp.inf), -1)
        rows = p if shape.rows in (None, "all") else p[:, :, jnp.array(shape.rows)]
        return jnp.einsum("bhnm,bmhd->bnhd", p.astype(q.dtype), jnp.repeat(v, share, 2)), rows.sum(2).mean(1)

    return run


def _torch_attention(shape):
    """SDPA; scores from one more softmax of the scored rows (all of them: the array it avoids)."""
    import torch

    def run(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        share = shape.heads // shape.key_heads
        causal = shape.causal and shape.n > 1  # one row against a cache sees everything
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=share > 1)
        if shape.rows is None:
            return out
        rows = list(range(shape.n)) if shape.rows == "all" else list(shape.rows)
        s = q[:, :, rows] @ k.repeat_interleave(share, 1).transpose(2, 3) * shape.d**-0.5
        if causal:
            last = torch.tensor(rows, device=q.device) % shape.n + shape.m - shape.n
            s = s.masked_fill(torch.arange(shape.m, device=q.device) > last[:, None], float("-inf"))
        return out, torch.softmax(s.float(), -1).sum(2).mean(1)

    return run


def _torch_nearest(shape):
    import torch

    def run(a, b):
        if shape.metric == "cosine":
            a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
        score = a @ b.transpose(-1, -2)
        if shape.metric == "l2":
            score = 2 * score - b.square().sum(-1).unsqueeze(-2)
        return score.topk(shape.k, -1) if shape.k > 1 else score.max(-1)

    return run


def _torch_select(shape):
    """DivPrune's loop for a batch: the most isolated token, then k - 1 times the one farthest from those picked."""
    import torch

    def run(x):
        x = torch.nn.functional.normalize(x, dim=-1)
        distance = 1 - x @ x.transpose(1, 2)
        image = torch.arange(x.shape[0], device=x.device)
        pick = distance.topk(2, -1, largest=False).values[..., 1].argmax(-1)
        picks, nearest = [pick], distance[image, pick]
        for _ in range(shape.k - 1):
            nearest[image, pick] = -1
            pick = nearest.argmax(-1)
            picks.append(pick)
            nearest = torch.minimum(nearest, distance[image, pick])
        return torch.stack(picks, 1)

    return run


def _torch_select_by_image(shape):
    run = _torch_select(shape)
    return lambda x: [run(image[None]) for image in x]


def _torch_gather(shape):
    return lambda x, index: x.gather(1, index[..., None].expand(-1, -1, shape.d))


def _torch_merge(shape):
    import torch

    def run(x, assign):
        total = torch.zeros(shape.batch, shape.num, shape.d, dtype=x.dtype, device=x.device)
        mass = torch.zeros(shape.batch, shape.num, dtype=x.dtype, device=x.device)
        total.scatter_add_(1, assign[..., None].expand(-1, -1, shape.d), x)
        return total, mass.scatter_add_(1, assign, torch.ones_like(assign, dtype=x.dtype))

    return run


JAX = {"attention_scores": {"scoring off": _scoring_off, "materialised": _materialised}}
TORCH = {
    "attention_scores": {"torch": _torch_attention},
    "nearest": {"torch": _torch_nearest},
    "max_min_select": {"torch": _torch_select, "torch, image by image": _torch_select_by_image},
    "gather": {"torch": _torch_gather},
    "merge": {"torch": _torch_merge},
}
