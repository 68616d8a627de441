"""A model gives the same whether its layers' parameters are stacked or each layer has arrays of its own."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.layers.stacked import Stacked, stack_layers, unstack
from jtok.methods.vit.topk import plan as topk
from jtok.models.decoder.decoder import Decoder, DecoderConfig
from jtok.models.towers.qwen_vision import QwenVision, QwenVisionConfig
from jtok.models.towers.vit import ViT, ViTConfig


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), shape)


def vit(remat: bool):
    config = ViTConfig(image=32, patch=8, width=32, depth=4, heads=2, mlp=48, classes=5, head="class", remat=remat)
    plan = topk(config.target(), keep=0.5, stages=1)
    images = normal(2, 32, 32, 3)

    def run(model: ViT):
        return model(images, hidden=True).hidden, model(images, plan).tokens.x

    return ViT(config, nnx.Rngs(0)), run


def qwen(remat: bool):
    config = QwenVisionConfig(width=32, depth=4, heads=2, mlp=48, patch=4, window=2, full=(3,), remat=remat)
    sizes = jnp.asarray([[4, 4], [3, 2]])
    pixels = normal(2, 4, 4, 4, config.channels * config.temporal * config.patch**2)
    return QwenVision(config, nnx.Rngs(0)), lambda model: model(pixels, sizes=sizes).tokens.x


def decoder(remat: bool):
    config = DecoderConfig(
        vocabulary=40, width=32, depth=4, heads=4, kv_heads=2, head_dim=8, mlp=48, remat=remat, act="silu"
    )
    ids = jnp.arange(12).reshape(2, 6)
    return Decoder(config, nnx.Rngs(0)), lambda model: model(ids)


def values(run: Callable, model: nnx.Module):
    """(outputs, gradients of their squares' sum by parameter path)."""
    graphdef, params = nnx.split(model)

    def loss(params):
        out = run(nnx.merge(graphdef, params))
        return sum(jnp.square(a).sum() for a in jax.tree.leaves(out)), out

    grads, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    return out, nnx.to_pure_dict(grads)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("make", [vit, qwen, decoder])
def test_both_layouts_give_the_same(make, remat):
    model, run = make(remat)
    out, grads = values(run, model)
    model.blocks = unstack(model.blocks)
    got, got_grads = values(run, model)
    own = jax.tree.leaves(nnx.to_pure_dict(nnx.state(model.blocks[3], nnx.Param)))
    assert [(4, *a.shape) for a in own] == [a.shape for a in jax.tree.leaves(grads["blocks"])]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, out)
    layers = [got_grads["blocks"][i] for i in range(4)]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), stacked, grads["blocks"])


def lines(model: nnx.Module, run: Callable) -> str:
    graphdef, params = nnx.split(model)
    return str(jax.make_jaxpr(lambda params: run(nnx.merge(graphdef, params)))(params))


def test_stacked_layers_are_scanned_and_others_unrolled():
    model, run = decoder(remat=False)
    assert "scan[" in lines(model, run)
    model.blocks = unstack(model.blocks)
    assert "scan[" not in lines(model, run)


@pytest.mark.parametrize("layout", [lambda blocks: blocks, unstack, lambda blocks: tuple(unstack(blocks))])
def test_rows_carry_and_outputs_of_a_part_of_the_layers(layout):
    blocks = stack_layers(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 5, nnx.Rngs(0))
    kernel = np.asarray(blocks.kernel[...])
    layers = Stacked(layout(blocks), first=10, scope="some.layers")
    assert layers.depth == 5
    np.testing.assert_array_equal(layers.layer(12).kernel[...], kernel[2])
    rows = jnp.arange(3.0), {"own": jnp.arange(6.0).reshape(3, 2)}

    def body(layer, x, number, given):
        x = layer(x) + number
        return x, (x, None, given["own"].sum())

    x = jnp.ones((2, 3))
    carry, (every, nothing, sums) = layers.scan(body, x, 11, 14, *rows)
    want = []
    for i, k in enumerate(kernel[1:4]):
        x = x @ k + i
        want.append(x)
    np.testing.assert_allclose(every, want, rtol=1e-5)
    np.testing.assert_allclose(carry, want[-1], rtol=1e-5)
    np.testing.assert_array_equal(sums, [1, 5, 9])
    assert nothing is None


def test_layers_start_with_random_numbers_of_their_own():
    blocks = stack_layers(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 2, nnx.Rngs(0))
    assert not np.allclose(blocks.kernel[0], blocks.kernel[1])
