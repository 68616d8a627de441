"""Tokenizers under their authors' names: names, shapes and values as released, and read back as the same tokenizer."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from jtok.errors import UserError
from jtok.export.tokenizer_files import released_tensors, save_released
from jtok.tokenizers.files import fingerprint, load_tokenizer
from jtok.tokenizers.titok import SIZES, TiTok, TiTokConfig
from tests.parity.adapters import titok as adapter
from tests.parity.case import Case

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = (16, 2, 2)
ONE_STAGE = {"image": 32, "patch": 16, "tokens": 4, "encoder": SHAPE, "decoder": SHAPE, "codebook": 20, "code_width": 6}


@pytest.mark.slow
@pytest.mark.parametrize("file", ["titok-tiny-stage2", "titok-tiny-rgb", "titok-tiny-vae", "titok-tatitok-tiny"])
def test_tensors_leave_as_they_came(file):
    case = Case(GOLDEN / f"{file}.npz")
    found = released_tensors(adapter.tokenizer(case))
    assert found.keys() == case.weights.keys()
    for name, a in case.weights.items():
        assert found[name].shape == a.shape, name
        np.testing.assert_array_equal(found[name], a, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bottleneck": "kl"},
        {"drop_tail": True},
        {"legacy": True, "tokens": 6, "code_width": 6},
        {"text_length": 5, "text_width": 12},
    ],
)
def test_a_tokenizer_comes_back(fields, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "small", SHAPE)
    net = TiTok(TiTokConfig(**{**ONE_STAGE, **fields}), nnx.Rngs(0))
    stated = save_released(tmp_path, net)
    again = load_tokenizer(tmp_path)
    assert again.config == net.config and fingerprint(again) == fingerprint(net)
    assert json.loads((tmp_path / "config.json").read_text()) == stated
    images = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
    np.testing.assert_array_equal(again.analyse(images).latents, net.analyse(images).latents)


@pytest.mark.slow
def test_half_precision_is_stored_as_such(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "small", SHAPE)
    save_released(tmp_path, TiTok(TiTokConfig(**ONE_STAGE), nnx.Rngs(0)), "bfloat16")
    assert load_file(tmp_path / "model.safetensors")["latent_tokens"].dtype == "bfloat16"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, r"with encoder \(16, 2, 2\)"),
        ({"bottleneck": "fsq", "levels": (5, 5), "code_width": 2}, "bottleneck 'fsq'"),
    ],
)
def test_what_no_release_is_like_is_refused(fields, said, tmp_path):
    with pytest.raises(UserError, match=said):
        save_released(tmp_path, TiTok(TiTokConfig(**{**ONE_STAGE, **fields}), nnx.Rngs(0)))
    assert not list(tmp_path.iterdir())
