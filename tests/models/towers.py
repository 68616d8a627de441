"""Runs a loaded tower, and compares trees of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jtok.models.towers.vit import ViT, ViTConfig, ViTOutput
from jtok.plan import Plan


def run(config: ViTConfig, params, pixels: torch.Tensor, plan: Plan | None = None, **packed: torch.Tensor) -> ViTOutput:
    """The jitted tower's output with hidden states, for torch pixels [B,C,H,W] (or packed patches)."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: ViT(config, nnx.Rngs(0))))
    x = pixels.numpy() if config.packed else pixels.numpy().transpose(0, 2, 3, 1)
    rest = {name: jnp.asarray(value.numpy()) for name, value in packed.items()}

    @jax.jit
    def apply(params, x, rest):
        return nnx.merge(graphdef, nnx.State(params))(x, plan, hidden=True, **rest)

    return apply(params, jnp.asarray(x), rest)


def assert_close(ours, theirs: torch.Tensor, where=..., tolerance: float = 1e-4) -> None:
    """Equal within an absolute tolerance; `where` picks the elements that count."""
    assert ours.shape == tuple(theirs.shape)
    np.testing.assert_allclose(np.asarray(ours)[where], theirs.numpy()[where], rtol=0, atol=tolerance)


def assert_same(a, b) -> None:
    """Bit-identical trees."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
