"""Properties that every bottleneck has: codes survive decode, gradients pass, losses exist in training only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.errors import UserError
from jtok.tokenizers.quantizers import BSQ, FSQ, LFQ, VQ, Gaussian, MultiScaleVQ, Product, Residual
from jtok.tokenizers.quantizers.bottleneck import bits_to_index, index_to_bits, rotate
from jtok.tokenizers.quantizers.ema import Codebook, EmaVQ
from jtok.tokenizers.quantizers.vq import unit


def rngs():
    return nnx.Rngs(0)


CASES = {
    "vq": (lambda: VQ(16, 4, rngs=rngs()), 4),
    "vq-cosine": (lambda: VQ(16, 4, cosine=True, pass_through="rotation", entropy_weight=0.1, rngs=rngs()), 4),
    "fsq": (lambda: FSQ((8, 5, 5)), 3),
    "fsq-official": (lambda: FSQ((8, 5, 5), "official"), 3),
    "fsq-symmetric": (lambda: FSQ((4, 2, 6), "symmetric"), 3),
    "lfq": (lambda: LFQ(5), 5),
    "lfq-factorised": (lambda: LFQ(4, codebooks=2, clamp=2.0, factorised=True), 8),
    "bsq": (lambda: BSQ(6, 3), 6),
    "bsq-one-index": (lambda: BSQ(6, 6, "group"), 6),
    "product": (lambda: Product([VQ(8, 2, rngs=rngs()), FSQ((5, 5))], (2, 2)), 4),
    "residual": (lambda: Residual([VQ(16, 4, rngs=rngs()) for _ in range(3)]), 4),
}


def latents(width: int, seed: int = 0, shape=(2, 7)) -> jax.Array:
    return unit(jax.random.normal(jax.random.key(seed), (*shape, width))) * 1.5


@pytest.mark.parametrize("name", CASES)
def test_indices_decode_to_the_values(name):
    make, width = CASES[name]
    quantizer = make()
    output = quantizer(latents(width))
    np.testing.assert_allclose(quantizer.decode(output.indices), output.values, atol=1e-6)
    assert output.indices.dtype == jnp.int32 and not output.losses
    if hasattr(quantizer, "size"):
        assert 0 <= int(output.indices.min()) and int(output.indices.max()) < quantizer.size


@pytest.mark.parametrize("name", CASES)
def test_gradients_pass_and_losses_are_finite(name):
    make, width = CASES[name]
    quantizer = make()

    def objective(z):
        output = quantizer(z, train=True)
        return (output.values**2).sum() + output.losses.get("total", 0.0)

    grad = jax.jit(jax.grad(objective))(latents(width))
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0


@pytest.mark.parametrize("name", CASES)
def test_rows_do_not_see_each_other(name):
    make, width = CASES[name]
    quantizer, z = make(), latents(width)
    np.testing.assert_allclose(quantizer(z[:1]).values, quantizer(z).values[:1], atol=1e-6)


def test_fsq_reaches_every_code_and_atanh_maps_zero_to_zero():
    fsq = FSQ((4, 3))
    every = fsq.decode(jnp.arange(fsq.size))
    assert len(np.unique(np.asarray(every), axis=0)) == 12
    np.testing.assert_array_equal(fsq.indices(every), np.arange(12))
    assert float(jnp.abs(FSQ((8, 8)).bound(jnp.zeros((1, 2)))).max()) < 1e-6
    assert float(jnp.abs(FSQ((4, 4), "official").bound(jnp.zeros((1, 2)))).max()) > 1e-4


def test_fsq_noise_only_in_training_and_within_bounds():
    fsq, z = FSQ((6, 6), "symmetric", noise=1.0), latents(2)
    still, moved = fsq(z).values, fsq(z, train=True, key=jax.random.key(1)).values
    assert (np.asarray(still) != np.asarray(moved)).any() and np.abs(moved).max() <= 1
    np.testing.assert_array_equal(fsq(z, key=jax.random.key(1)).values, still)


def test_lfq_per_sample_entropy_is_exact_bit_by_bit_and_padding_is_inert():
    z = latents(5)
    whole, parts = (LFQ(5, factorised=f, inverse_temperature=1.0)(z, train=True).losses for f in (False, True))
    np.testing.assert_allclose(whole["per_sample_entropy"], parts["per_sample_entropy"], rtol=1e-4)
    assert parts["batch_entropy"] >= whole["batch_entropy"] - 1e-5
    valid = jnp.arange(7)[None] < jnp.array([[4], [7]])
    other = jnp.where(valid[..., None], z, 9.0)
    a, b = (LFQ(5, inverse_temperature=1.0)(x, train=True, valid=valid).losses["total"] for x in (z, other))
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_residual_stages_may_be_dropped_and_add_up():
    quantizer, z = Residual([VQ(64, 4, rngs=nnx.Rngs(i)) for i in range(3)]), latents(4)
    for i, stage in enumerate(quantizer.stages):
        stage.codebook[...] = jax.random.normal(jax.random.key(i), (64, 4)) * 0.5**i
    errors = [float(jnp.square(quantizer(z, count=jnp.full((2, 7), n)).values - z).mean()) for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    part = quantizer(z, count=jnp.full((2, 7), 2))
    assert (np.asarray(part.indices[..., 2]) == -1).all()
    np.testing.assert_allclose(quantizer.decode(part.indices[..., :2]), part.values, atol=1e-6)


def test_multi_scale_rebuilds_from_the_first_scales():
    vq = MultiScaleVQ(32, 4, (1, 2, 4), convolutions=2, rngs=nnx.Rngs(0))
    vq.codebook[...] = jax.random.normal(jax.random.key(1), (32, 4))
    z = jax.random.normal(jax.random.key(2), (2, 4, 4, 4))
    output, sums = vq(z), vq.encode(z)[1]
    for count, total in zip((1, 5, 21), sums, strict=True):
        np.testing.assert_allclose(vq.decode(output.indices[:, :count]), total, atol=1e-5)
    with pytest.raises(UserError, match="takes maps of 4 a side"):
        vq(z[:, :3, :3])


def test_gaussian_mean_sample_and_kl():
    bottleneck, z = Gaussian(weight=2.0), jnp.concatenate([jnp.ones((3, 2)), jnp.zeros((3, 2))], -1)
    output = bottleneck(z, train=True)
    np.testing.assert_allclose(output.values, 1.0)
    np.testing.assert_allclose(output.losses["kl"], 1.0)  # 0.5 * mean^2, two channels
    np.testing.assert_allclose(output.losses["total"], 2.0)
    assert (np.asarray(bottleneck(z, key=jax.random.key(0)).values) != 1).all()


def test_dead_codes_are_put_on_latents():
    z = latents(4, shape=(1, 32))
    book = Codebook(jnp.full((6, 4), 50.0), jnp.zeros(6), jnp.zeros((6, 4)))
    quantizer = EmaVQ(dead=1.0)
    new = quantizer.update(book, z, quantizer(z, book).indices, jax.random.key(0))
    gap = jnp.abs(new.codes[:, None] - z[0][None]).sum(-1).min(1)
    assert (np.asarray(gap)[1:] < 1e-6).all(), "codes that nothing chose lie on latents"


def test_rotation_keeps_the_value_and_turns_the_gradient():
    z, q = latents(4, 1), latents(4, 2)
    np.testing.assert_allclose(rotate(z, q), q, atol=1e-5)
    plain = jax.grad(lambda z: (z + jax.lax.stop_gradient(q - z)).sum())(z)
    assert np.abs(jax.grad(lambda z: rotate(z, q).sum())(z) - plain).max() > 1e-2


def test_bits_and_indices_are_inverse():
    index = jnp.arange(32, dtype=jnp.int32)
    np.testing.assert_array_equal(bits_to_index(index_to_bits(index, 5)), index)


def test_bad_options_are_one_sentence():
    for make, words in (
        (lambda: FSQ((8, 2)), "at least 3"),
        (lambda: FSQ((64,) * 6), "int32"),
        (lambda: LFQ(40), "1 to 31"),
        (lambda: BSQ(7, 3), "do not divide"),
        (lambda: Product([FSQ((5,))], (1, 1)), "as many widths"),
        (lambda: MultiScaleVQ(4, 4, (2, 1), rngs=rngs()), "must ascend"),
    ):
        with pytest.raises(UserError, match=words):
            make()
