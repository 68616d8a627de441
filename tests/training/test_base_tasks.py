"""Training of FlexTok, ALIT and KARL on frozen bases: losses fall, bases stay, state moves, bad configs are refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from jtok.config_file import load_config
from jtok.errors import UserError
from jtok.tokenizers.karl import BINS, KARL, KARLConfig
from jtok.training.tasks.frozen_base import PixelGrid, base_config
from jtok.training.tasks.image_task import UNTRAINED
from jtok.training.tasks.registry import make_task
from tests.training.tokenizer_tasks import TINY_VQGAN, trained, with_adversary

SMALL = {"encoder": (48, 1, 2), "decoder": (48, 1, 2), "codebook": 16, "code_width": 4}
FIELDS = {
    "alit": {**SMALL, "image": 16, "patch": 8, "tokens": 2, "rounds": 2, "most": 4},
    "karl": {**SMALL, "patch": 8, "tokens": 4, "most": 8, "table": 4, "halting_width": 8},
    "flextok": {"encoder_depth": 1, "decoder_depth": 1, "encoder_width": 32, "decoder_width": 32, "registers": 4},
}


def tiny(name, **changes):
    config = load_config(f"configs/tokenizer/{name}.py:quick")
    config.tokenizer.fields.update(FIELDS[name])
    config.train.update({"batch": 4, "steps": 60, "warmup": 0, "lr": 3e-3})
    if name != "flextok":
        config.base = base_config("vqgan", **{**TINY_VQGAN, "widths": (8, 8, 8, 16)})
        config.base.update({"path": UNTRAINED, "codes": 16})
    if name == "karl":
        config.budgets = (2, 4, 6)
    config.update(changes)
    return config


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "least"), [("flextok", 40, 0.9), ("alit", 15, 0.9), ("karl", 20, 0.9)])
def test_the_loss_falls(name, steps, least):
    task = make_task(tiny(name))
    states, metrics = trained(task, steps)
    losses = [float(m["loss"]) for m in metrics]
    assert np.mean(losses[-4:]) < least * np.mean(losses[:4]), losses
    before, after = (jax.tree.leaves(states[i].params["base"]) for i in (0, -1))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    if name != "flextok":
        np.testing.assert_array_equal(
            states[-1].params["tokenizer"]["base_codebook"], states[0].params["base"]["codebook"]
        )
    batch = next(iter(task.train_data()))
    found = jax.jit(task.evaluate)(states[-1].eval_params, batch)
    assert all(value.shape == (4,) and np.isfinite(value).all() for value in found.values())
    assert task.example_batch(4)["image"].shape == batch["image"].shape


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alit", "karl"])
def test_the_stage_of_pixels_trains_tokenizer_and_discriminators(name):
    config = tiny(name, stage="pixels")
    config.loss.update({"absolute": 1.0, "pyramid": 0.1})
    task = make_task(with_adversary(config, adaptive=True))
    states, metrics = trained(task, 3)
    assert all(np.isfinite(list(map(float, m.values()))).all() for m in metrics)
    for part in ("tokenizer", "discriminator"):
        pairs = zip(*(jax.tree.leaves(states[i].params[part]) for i in (0, -1)), strict=True)
        assert any(not np.array_equal(a, b) for a, b in pairs), part


@pytest.mark.slow
def test_karl_asks_ever_more_rarely_for_errors_that_are_easily_reached():
    config, bins = tiny("karl"), np.asarray(BINS, np.float32)
    config.base = base_config("pixels")  # an untrained guess of which is about grey
    config.base.stride = 4
    config.tokenizer.fields.update({"patch": 4, "encoder": (64, 1, 2)})
    task = make_task(config)
    params = task.init(jax.random.key(0))
    np.testing.assert_allclose(params["state"]["errors"], (bins <= 0.04) / 5, rtol=1e-6)
    odds = params["state"]["errors"] = jnp.full(len(bins), 1 / len(bins))
    # one image, so that the mean error that is logged is the smallest of the batch
    batch, step = {"image": jnp.full((1, 16, 16, 3), 180, jnp.uint8)}, jnp.zeros((), jnp.int32)
    grads, logged = jax.jit(jax.grad(task.loss, has_aux=True))(params, batch, jax.random.key(1), step)
    easy = bins >= float(logged["reached"])
    assert 0 < easy.sum() < len(bins), logged["reached"]
    expected = np.where(easy, 0.99 * odds, odds)
    np.testing.assert_allclose(odds - grads["state"]["errors"], expected / expected.sum(), rtol=1e-5)


@pytest.mark.slow
def test_a_budget_is_as_if_there_were_no_more_tokens():
    net = KARL(KARLConfig(**FIELDS["karl"], base_width=8, base_codes=16), nnx.Rngs(0))
    images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
    grid, error = jax.random.normal(jax.random.key(2), (2, 2, 2, 8)), jnp.full(2, 0.05)
    few = net.code(images, grid, error, 3, train=True)
    many = net.code(images, grid, error, 6, train=True, budget=jnp.full(2, 3))
    np.testing.assert_allclose(many.latents[:, :3], few.latents, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many.losses["total"], few.losses["total"], rtol=1e-5)
    np.testing.assert_array_equal(many.count, few.count)
    guesses = net.guess(many), net.guess(few)
    np.testing.assert_allclose(*guesses, rtol=1e-4, atol=1e-5)


def test_the_base_of_pixels_loses_nothing():
    base, images = PixelGrid(4), jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    assert base.encode(images).shape == (2, 4, 4, base.channels)
    np.testing.assert_allclose(base.decode(base.encode(images)), images, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("alit", lambda c: c.base.update({"path": ""}), "needs a trained file: set config.base.path"),
        ("alit", lambda c: c.base.update({"kind": "clip"}), "choose pixels, vqgan or kl"),
        ("alit", lambda c: c.update({"stage": "first"}), "choose codes or pixels"),
        ("alit", lambda c: c.tokenizer.fields.update({"patch": 4}), "the tokenizer's patch must be that"),
        (
            "alit",
            lambda c: c.tokenizer.fields.update({"colour": 4}),
            "do not fit the tokenizer of 'recurrent",
        ),
        ("karl", lambda c: c.update({"budgets": (4, 900)}), "config.budgets must lie between 1 and the 8"),
        ("karl", lambda c: c.train.__setitem__("parts", ConfigDict()), "config.train.parts.state must be"),
        ("flextok", lambda c: c.tokenizer.fields.update({"channels": 4}), "they must be the same"),
    ],
)
def test_one_sentence(name, change, said):
    config = tiny(name)
    change(config)
    with pytest.raises(UserError, match=said):
        make_task(config)
