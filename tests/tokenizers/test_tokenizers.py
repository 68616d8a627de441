"""What all tokenizers promise: lengths, prefixes, quality, rows; small random models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok.errors import UserError
from jtok.models.diffusion.flow import Guidance
from jtok.tokenizers.alit import ALIT, ALITConfig
from jtok.tokenizers.flextok import FlexTok, FlexTokConfig
from jtok.tokenizers.karl import KARL, KARLConfig, error_bin
from jtok.tokenizers.nested_dropout import draw_counts
from jtok.tokenizers.one_d_piece import drop_tail, one_d_piece
from jtok.tokenizers.titok import TiTok, TiTokConfig

SHAPE = (32, 1, 2)


class Blocks:
    """A base tokenizer for tests: the mean colour of every patch, and back."""

    def encode(self, images):
        b, h, w, _ = images.shape
        return images.reshape(b, h // 4, 4, w // 4, 4, 3).mean((2, 4))

    def decode(self, grid):
        return jnp.repeat(jnp.repeat(grid, 4, 1), 4, 2)


def titok():
    small = {"image": 16, "patch": 4, "tokens": 8, "encoder": SHAPE, "decoder": SHAPE, "codebook": 32, "code_width": 4}
    return TiTok(TiTokConfig(**small, drop_tail=True), nnx.Rngs(0))


def flextok():
    small = {"encoder_depth": 1, "decoder_depth": 1, "encoder_width": 32, "decoder_width": 32, "head_size": 16}
    config = FlexTokConfig(**small, channels=3, patch=4, grid=4, registers=8, steps=2, frequencies=32, levels=(8, 5, 5))
    net = FlexTok(config, nnx.Rngs(0))
    # a fresh decoder gives zero and its gates are shut: as after some training
    for i, layer in enumerate((net.decoder.out, net.decoder.modulate, net.decoder.trunk.blocks.modulate)):
        layer.kernel[...] = jax.random.normal(jax.random.key(i), layer.kernel.shape) * 0.1
    return net


def alit():
    small = {"image": 16, "patch": 4, "encoder": SHAPE, "decoder": SHAPE, "tokens": 3, "rounds": 2, "most": 6}
    return ALIT(ALITConfig(**small, codebook=32, code_width=4, base_width=3, base_codes=0), nnx.Rngs(0), Blocks())


def karl():
    small = {"patch": 4, "encoder": SHAPE, "decoder": SHAPE, "tokens": 6, "most": 8, "table": 4, "halting_width": 8}
    return KARL(KARLConfig(**small, codebook=32, code_width=4, base_width=3, base_codes=0), nnx.Rngs(0), Blocks())


MAKE = {"titok": titok, "flextok": flextok, "alit": alit, "karl": karl}


def images(seed: int = 0) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), (2, 16, 16, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_images_survive_the_way_and_rows_do_not_see_each_other(name):
    net, x = MAKE[name](), images()
    code = net.encode(x)
    y = net.decode(code)
    assert y.shape == x.shape and np.isfinite(y).all() and 0 <= float(y.min()) and float(y.max()) <= 1
    alone = net.encode(x[:1])
    np.testing.assert_array_equal(alone.ids[0], code.ids[0])
    if name != "flextok":  # whose noise is drawn for the batch
        np.testing.assert_allclose(net.decode(alone)[0], y[0], atol=1e-5)


@pytest.mark.parametrize("name", ["titok", "flextok"])
def test_what_is_behind_the_count_does_not_matter(name):
    net = MAKE[name]()
    code = net.encode(images(), tokens=3)
    garbage = code.ids.at[:, 3:].set(1)
    from_garbage = net.from_ids(garbage, code.count)
    np.testing.assert_allclose(net.decode(from_garbage), net.decode(code), atol=1e-5)
    assert np.abs(net.decode(code) - net.decode(net.encode(images()))).max() > 1e-4, "more tokens change the image"


@pytest.mark.parametrize("name", ["titok", "alit"])
def test_quality_takes_the_fewest_tokens_that_reach_it(name):
    net, x = MAKE[name](), images()
    assert (np.asarray(net.encode(x, quality=1.0).count) == net.lengths[0]).all()
    assert set(np.asarray(net.encode(x, quality=90.0).count)) <= set(net.lengths)
    with pytest.raises(UserError, match="tokens are requested"):
        net.encode(x, tokens=99)


def test_quality_out_of_reach_takes_all_tokens():
    assert (np.asarray(titok().encode(images(), quality=90.0).count) == 8).all()


def test_tail_drop_is_one_number_a_batch_or_one_an_image():
    code = titok().encode(images())
    counts = [np.asarray(drop_tail(code, jax.random.key(i))[1]) for i in range(20)]
    assert all(len(set(c)) == 1 for c in counts) and len({c[0] for c in counts}) > 3
    each = [np.asarray(drop_tail(code, jax.random.key(i), per_image=True)[1]) for i in range(20)]
    assert any(len(set(c)) == 2 for c in each)
    assert one_d_piece("small").tokens == 256


def test_nested_dropout_draws():
    for kind in ("uniform", "pow2", "uniform_pow2"):
        drawn = np.asarray(draw_counts(jax.random.key(0), 500, 16, kind))
        assert drawn.min() >= 1 and drawn.max() == 16
        assert kind == "uniform" or set(drawn) == {1, 2, 4, 8, 16}
    drawn = np.asarray(draw_counts(jax.random.key(0), 4000, 31, "log_uniform"))
    shares = np.bincount(drawn, minlength=32)[1:] / 4000
    np.testing.assert_allclose(shares, np.log2(1 + 1 / np.arange(1, 32)) / 5, atol=0.03)
    with pytest.raises(UserError, match="power of two"):
        draw_counts(jax.random.key(0), 4, 12)


@pytest.mark.slow
def test_flextok_learns_and_guidance_changes_the_sample():
    net, x = flextok(), images()
    loss, grads = nnx.value_and_grad(lambda n: n.loss(x, jax.random.key(2))["total"])(net)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    code, noise = net.encode(x), jax.random.normal(jax.random.key(3), x.shape)
    plain, guided = (net.sample(code, noise, guidance=g) for g in (Guidance(1.0), Guidance(4.0)))
    assert np.abs(plain - guided).max() > 1e-4


def test_karl_halts_and_is_asked_for_errors():
    np.testing.assert_array_equal(error_bin(jnp.array([0.001, 0.05, 0.051, 0.9])), [0, 5, 6, 18])
    net = karl()
    net.halting.out.bias[...] = jnp.full(1, 9.0)  # everything halts
    code = net.encode(images())
    assert (np.asarray(code.count) == 0).all() and np.isfinite(net.decode(code)).all()
    assert float(net.halting_loss(code, 0)) > float(net.halting_loss(code, code.ids.shape[1]))


def test_a_tokenizer_without_its_base_says_so():
    net = ALIT(alit().config, nnx.Rngs(0))
    with pytest.raises(UserError, match="base tokenizer"):
        net.encode(images())
