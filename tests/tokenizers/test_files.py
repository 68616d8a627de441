"""Tokenizers survive their files; other files are refused in one sentence; a released config is understood."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jtok.errors import UserError
from jtok.tokenizers.files import fingerprint, load_tokenizer, save_tokenizer
from jtok.tokenizers.titok import titok_config
from tests.tokenizers.test_tokenizers import MAKE, Blocks, images

LONG = ("alit", "karl")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in MAKE])
def test_a_tokenizer_survives_its_file(name, tmp_path):
    net, path = MAKE[name](), tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, net)
    reloaded = load_tokenizer(path, **({"base": Blocks()} if name in ("alit", "karl") else {}))
    assert reloaded.config == net.config and fingerprint(reloaded) == fingerprint(net)
    np.testing.assert_array_equal(reloaded.encode(images()).ids, net.encode(images()).ids)


def test_other_weights_have_another_fingerprint(tmp_path):
    net = MAKE["titok"]()
    before = fingerprint(net)
    net.latent_tokens[...] = jax.numpy.zeros_like(net.latent_tokens[...])
    assert fingerprint(net) != before


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="not a jtok tokenizer"):
        load_tokenizer(path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="not that of a tokenizer that jtok knows"):
        load_tokenizer(path)
    save_file({"x": np.zeros(3, np.float32)}, path, {"jtok.tokenizer": '{"kind": "other", "config": {}}'})
    with pytest.raises(UserError, match="does not know"):
        load_tokenizer(path)


def test_a_released_config_is_understood():
    model = {"codebook_size": 4096, "token_size": 12, "use_l2_norm": True, "commitment_cost": 0.25}
    model |= {"vit_enc_model_size": "large", "vit_dec_model_size": "large", "vit_enc_patch_size": 16}
    stated = {
        "model": {"vq_model": model | {"num_latent_tokens": 32}},
        "dataset": {"preprocessing": {"crop_size": 256}},
    }
    config = titok_config(stated, {"pixel_quantize.embedding.weight"})
    assert config.legacy and config.pixels and config.tokens == 32 and config.encoder == (1024, 24, 16)
    stated["model"]["vq_model"] |= {"is_legacy": False, "quantize_mode": "vae"}
    assert titok_config(stated, set()).bottleneck == "kl"
