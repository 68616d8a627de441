"""Training of TiTok: in two stages, with LPIPS, with an averaged codebook; refusals; an adversary resumes."""

from __future__ import annotations

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jtok.checkpoints.safetensor_files import write_safetensors
from jtok.errors import UserError
from jtok.tokenizers.files import save_tokenizer
from jtok.tokenizers.quantizers.ema import Codebook
from jtok.tokenizers.titok import TiTok
from jtok.training import train
from jtok.training.losses.image_loss import PictureLoss
from jtok.training.losses.lpips import LPIPS
from jtok.training.state import named_leaves
from jtok.training.tasks import predict_codes
from jtok.training.tasks.frozen_base import base_config
from jtok.training.tasks.image_task import UNTRAINED, pixel_decoder_from
from jtok.training.tasks.predict_codes import PredictCodes
from jtok.training.tasks.tokenize_images import TokenizeImages, default_config
from tests.tokenizers.conv_reference import Network
from tests.training.tokenizer_tasks import TINY_VQGAN, tiny_titok, trained, with_adversary


def first_stage():
    config = tiny_titok(predict_codes.default_config(), proxy=16)
    config.base = base_config("vqgan", **{**TINY_VQGAN, "widths": (8, 8, 8, 16)})
    config.base.update({"path": UNTRAINED, "codes": 16})
    return PredictCodes(config)


@pytest.mark.slow
def test_both_stages_learn_and_the_second_leaves_the_first_s_codes_alone(tmp_path):
    one = first_stage()
    states, metrics = trained(one, 25)
    assert float(metrics[-1]["loss"]) < 0.8 * float(metrics[0]["loss"])
    assert np.isfinite(one.evaluate(states[-1].params, next(iter(one.train_data())))["psnr"]).all()
    base = zip(jax.tree.leaves(states[0].params["base"]), jax.tree.leaves(states[-1].params["base"]), strict=True)
    assert all(np.array_equal(a, b) for a, b in base)
    path = tmp_path / "one.safetensors"
    save_tokenizer(path, one.tokenizer(states[-1].params))

    config = tiny_titok(proxy=16, proxy_width=8, legacy=True, pixels=True, pixel_width=32, pixel_multipliers=(1,) * 4)
    config.tokenizer.fields.pixel_blocks = 1
    config.weights, config.freeze = str(path), ("encoder", "latent_tokens", "quantizer")
    two = TokenizeImages(config)
    states, metrics = trained(two, 12)
    assert float(metrics[-1]["square"]) < 0.9 * float(metrics[0]["square"])
    before, after = (named_leaves(states[i].params["tokenizer"]) for i in (0, -1))
    for name, leaf in before.items():
        held = name.split(".")[0] in config.freeze
        assert np.array_equal(leaf, after[name]) == held, name


@pytest.mark.slow
def test_an_adversarial_run_resumes_bit_by_bit(tmp_path):
    config = with_adversary(tiny_titok(), start=2, lecam=0.1)
    config.train.update({"steps": 6, "checkpoint_every": 3, "eval_every": 0, "log_every": 1, "ema": 0.9})
    config.data.options.length = 64
    whole = train(config, tmp_path / "whole", TokenizeImages(config), progress=False)
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "3", tmp_path / "again" / "checkpoints" / "3")
    again = train(config, tmp_path / "again", TokenizeImages(config), progress=False)
    one, two = (named_leaves((s.params, s.ema, s.opt_state)) for s in (whole, again))
    assert one.keys() == two.keys() and any("discriminator" in name for name in one)
    for name, leaf in one.items():
        assert np.asarray(leaf).tobytes() == np.asarray(two[name]).tobytes(), name


@pytest.mark.slow
def test_codes_follow_their_averages_and_dead_ones_revive():
    config = tiny_titok()
    config.codebook.update({"average": 0.9, "dead": 0.95})
    config.train.parts.state = {"assign": True}
    task = TokenizeImages(config)
    states, metrics = trained(task, 20)
    assert float(metrics[-1]["loss"]) < float(metrics[0]["loss"])
    params, batch = states[0].params, next(iter(task.train_data()))
    net, images = task.tokenizer(params), batch["image"].astype(jnp.float32) / 255
    book = Codebook(*(params["state"][name] for name in ("codes", "count", "total")))
    z = net.latents(images)
    key = jax.random.fold_in(jax.random.fold_in(states[0].key, 0), 1)
    expected = task.codebook.vq.update(book, z, task.codebook.vq(z, book).indices, key)
    for name in ("codes", "count", "total"):
        np.testing.assert_allclose(states[1].params["state"][name], getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert (expected.count == 0.95).any()  # revived: 0.9 of one is below
    held = task.tokenizer(states[-1].params).quantizer.codebook[...]
    np.testing.assert_array_equal(held, states[-1].params["state"]["codes"])
    frozen = [state.params["tokenizer"]["quantizer"]["codebook"] for state in (states[0], states[-1])]
    np.testing.assert_array_equal(*frozen)


@pytest.mark.slow
def test_lpips_of_local_files_is_part_of_the_loss_and_frozen(tmp_path):
    rng, widths = np.random.default_rng(0), {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3)}
    widths[10] = (256, 256, 3)
    tensors = {}
    for i, (out, inputs, k) in widths.items():
        tensors[f"features.{i}.weight"] = rng.normal(0, 0.05, (out, inputs, k, k)).astype(np.float32)
        tensors[f"features.{i}.bias"] = np.zeros(out, np.float32)
    taps = {f"lin{i}.model.1.weight": rng.random((1, w[0], 1, 1), np.float32) for i, w in enumerate(widths.values())}
    paths = [str(tmp_path / name) for name in ("alex.safetensors", "linear.safetensors")]
    for path, arrays in zip(paths, (tensors, taps), strict=True):
        write_safetensors(path, arrays, {})
    config = tiny_titok()
    config.loss.update({"lpips": 0.5, "lpips_net": "alex", "lpips_backbone": paths[0], "lpips_linear": paths[1]})
    a, b = jnp.asarray(rng.random((2, 2, 64, 64, 3), np.float32))
    pictures = PictureLoss(config)
    terms, _ = pictures(pictures.init(jax.random.key(0)), a, b, jnp.zeros((), jnp.int32))
    np.testing.assert_allclose(terms["lpips"], 0.5 * LPIPS.load(*paths, "alex")(a, b).mean(), rtol=1e-5)
    task = TokenizeImages(config)
    assert task.trainable(task.init(jax.random.key(0)))["lpips"] is False


def test_options_of_the_quantizer_are_reached_from_the_config():
    options = {"entropy": 0.1, "temperature": 0.5, "pass_through": "rotation", "beta": 0.5}
    task = TokenizeImages(tiny_titok(**options))
    net = nnx.eval_shape(lambda: TiTok(task.shape, nnx.Rngs(0))).quantizer
    assert (net.entropy_weight, net.temperature, net.pass_through, net.beta) == tuple(options.values())


def test_the_pixel_decoder_goes_on_from_the_file_of_the_vqgan(tmp_path):
    vqgan = Network(blocks=2, maskgit=True)
    vqgan.decoder(vqgan.encoder(torch.zeros(1, 3, 4, 4), 8))
    book = vqgan.tensor("quantize.embedding.weight", (20, 8))
    vqgan.save(tmp_path / "vqgan.safetensors")
    shape = {"legacy": True, "pixels": True, "proxy": 20, "proxy_width": 8, "pixel_width": 32}

    def fresh(multipliers):
        task = TokenizeImages(tiny_titok(**shape, pixel_multipliers=multipliers))
        made = nnx.eval_shape(lambda: TiTok(task.shape, nnx.Rngs(0)))
        return nnx.to_pure_dict(nnx.state(made, nnx.Param))

    found = pixel_decoder_from(tmp_path / "vqgan.safetensors", fresh((1, 2)))
    np.testing.assert_array_equal(found["pixel_codes"], book)
    kernel = vqgan.tensors["decoder.conv_out.weight"].permute(2, 3, 1, 0)
    np.testing.assert_array_equal(found["pixel_decoder"]["conv_out"]["kernel"], kernel)
    with pytest.raises(UserError, match="another shape than the tokenizer's"):
        pixel_decoder_from(tmp_path / "vqgan.safetensors", fresh((1, 1)))


@pytest.mark.parametrize(
    ("make", "change", "said"),
    [
        (TokenizeImages, lambda c: c.loss.update({"lpips": 1.0}), "its weights are in no file"),
        (TokenizeImages, lambda c: c.update({"freeze": ("encoder",)}), "set config.weights to the file of the first"),
        (TokenizeImages, lambda c: c.tokenizer.fields.update({"colour": 1}), "are those of TiTokConfig"),
        (TokenizeImages, lambda c: c.codebook.update({"average": 0.9}), "config.train.parts.state"),
        (PredictCodes, lambda c: c.base.update({"path": ""}), "set config.base.path"),
        (PredictCodes, lambda c: c.base.update({"kind": "kl"}), "the codes to predict are a VQGAN's"),
        (PredictCodes, lambda c: c.tokenizer.fields.update({"legacy": False}), "needs legacy=True, pixels=False"),
    ],
)
def test_one_sentence(make, change, said):
    config = tiny_titok(predict_codes.default_config() if make is PredictCodes else default_config())
    change(config)
    with pytest.raises(UserError, match=said) as caught:
        make(config)
    assert str(caught.value).count(". ") == 0


def test_a_missing_lpips_file_is_named(tmp_path):
    config = tiny_titok()
    config.loss.update({"lpips": 1.0, "lpips_backbone": str(tmp_path / "no.safetensors"), "lpips_linear": "nor"})
    with pytest.raises(UserError, match="no.safetensors"):
        TokenizeImages(config).init(jax.random.key(0))
