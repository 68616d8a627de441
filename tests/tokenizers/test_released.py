"""Released FlexTok, ALIT and KARL: their config is read from their tensors, and images are reconstructed."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import save_file

from jtok.checkpoints.trees import flatten
from jtok.errors import UserError
from jtok.tokenizers.alit import ALIT, ALITConfig
from jtok.tokenizers.base_grid import as_image, guessed_code
from jtok.tokenizers.files import fingerprint, load_tokenizer, save_tokenizer
from jtok.tokenizers.karl import KARL, KARLConfig
from tests.parity.case import Case
from tests.tokenizers.conv_reference import Network, diffusers_name

SHAPE = {"patch": 2, "encoder": (32, 2, 2), "decoder": (32, 1, 1), "codebook": 24, "code_width": 4}
SHAPE |= {"base_width": 8, "base_codes": 20}


def images(side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).random((2, side, side, 3), np.float32)


def released(net) -> dict[str, np.ndarray]:
    """The parameters of a tokenizer as its authors' file would hold them."""
    values = {k: np.asarray(v) for k, v in flatten(nnx.to_pure_dict(nnx.state(net, nnx.Param))).items()}
    tensors = {}
    for rule in net.names():
        if rule.path not in values:
            continue
        name = rule.names[0]
        for i, x in enumerate(values[rule.path] if "{}" in name else [values[rule.path]]):
            if rule.how in ("linear", "heads"):
                x = (x.reshape(-1, x.shape[-1]) if "out_proj" in name else x.reshape(x.shape[0], -1)).T
            elif rule.how == "patch":
                side = net.config.patch
                x = x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
            elif rule.how == "flat":
                x = x.reshape(-1)
            tensors[name.format(i)] = np.ascontiguousarray(x)
    return tensors


@pytest.fixture(scope="module")
def vqgan() -> dict[str, np.ndarray]:
    """MAGE's VQGAN in small."""
    net = Network(maskgit=True)
    net.decoder(net.encoder(torch.zeros((1, 3, 8, 8)), 8))
    net.tensor("quantize.embedding.weight", (20, 8))
    return {k: v.numpy() for k, v in net.tensors.items()}


@pytest.mark.slow
def test_alit_stands_on_the_base_in_its_own_checkpoint(vqgan, tmp_path):
    config = ALITConfig(image=8, tokens=3, rounds=2, most=6, **SHAPE)
    net = ALIT(config, nnx.Rngs(1))
    net.base_codebook[...] = jnp.asarray(vqgan["quantize.embedding.weight"])
    inside = {f"base_tokenizer.vqgan.{k}": v for k, v in vqgan.items()}
    path = tmp_path / "alit.safetensors"
    save_file(released(net) | inside | {"gan_losses.0.logvar": np.zeros(1, np.float32)}, path)
    reloaded = load_tokenizer(path)
    assert reloaded.config == config and fingerprint(reloaded) == fingerprint(net)
    code = reloaded.encode(images())
    targets = reloaded.base.ids(images()).reshape(2, -1)
    np.testing.assert_array_equal(code.ids, net.rollout(images(), reloaded.base.encode(images()), targets)[-1].ids)
    grid = guessed_code(reloaded.decoder(code.latents, code.count), net.base_codebook[...])
    np.testing.assert_allclose(reloaded.decode(code), np.clip(as_image(reloaded.base, grid), 0, 1), atol=1e-6)
    assert reloaded.decode(code, 3).shape == images().shape
    save_tokenizer(tmp_path / "ours.safetensors", reloaded)  # without the base
    assert fingerprint(load_tokenizer(tmp_path / "ours.safetensors")) == fingerprint(net)


@pytest.mark.slow
def test_karl_takes_a_base_from_its_own_file(vqgan, tmp_path):
    config = KARLConfig(tokens=6, most=6, table=5, halting_width=7, **SHAPE)
    net = KARL(config, nnx.Rngs(1))
    path, base = tmp_path / "karl.safetensors", tmp_path / "vqgan.safetensors"
    save_file(released(net), path)
    save_file(vqgan, base)
    reloaded = load_tokenizer(path, base=base)
    assert reloaded.config == config and fingerprint(reloaded) == fingerprint(net)
    assert reloaded.decode(reloaded.encode(images())).shape == images().shape
    alone = load_tokenizer(path)
    with pytest.raises(UserError, match="KARL codes the grid of a base tokenizer"):
        alone.encode(images())


def flextok(tmp_path, more: dict[str, str]):
    """The golden's weights and a VAE of four channels in one file."""
    weights = Case(Path(__file__).parents[1] / "golden" / "flextok-tiny.npz").weights
    vae = Network()
    vae.conv("quant_conv", vae.encoder(torch.zeros((1, 3, 8, 8)), 8), 8, 1)
    vae.decoder(vae.conv("post_quant_conv", torch.zeros((1, 4, 4, 4)), 4, 1))
    tensors = {f"vae.vae.{diffusers_name(k)}": v.numpy() for k, v in vae.tensors.items()}
    stated = {"encoder": "{'module_dict': {'enc_transformer': {'head_dim': 8}}}", **more}
    path = tmp_path / "model.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in (weights | tensors).items()}, path, stated)
    return path


@pytest.mark.slow
def test_flextok_takes_its_vae_from_its_own_checkpoint(tmp_path):
    net = load_tokenizer(flextok(tmp_path, {"vae": "{'scaling_factor': 0.5}"}))
    assert net.config.levels == (8, 8, 8, 5, 5, 5) and net.config.registers == 6 and net.vae.config.scale == 0.5
    code = net.encode(images(), 3)
    assert code.ids.shape == (2, 6)
    np.testing.assert_array_equal(code.ids, net.code(net.vae.encode(images())).ids)
    reconstruction = net.decode(code)
    assert reconstruction.shape == images().shape and np.asarray(reconstruction).std() > 0


def test_flextok_without_a_scale_wants_its_vae(tmp_path):
    net = load_tokenizer(flextok(tmp_path, {}))
    with pytest.raises(UserError, match="loaded without its VAE: give its file as the base"):
        net.encode(images())


def test_bases_that_do_not_fit_are_refused(vqgan, tmp_path):
    net = KARL(KARLConfig(tokens=6, most=6, table=5, halting_width=7, **SHAPE), nnx.Rngs(1))
    path, base = tmp_path / "karl.safetensors", tmp_path / "vqgan.safetensors"
    save_file(released(net), path)
    save_file(vqgan | {"quantize.embedding.weight": np.zeros((21, 8), np.float32)}, base)
    with pytest.raises(UserError, match="has 21 codes; the tokenizer was trained on 20"):
        load_tokenizer(path, base=base)
    other = Network(widths=(32, 32, 32), maskgit=True)
    other.decoder(other.encoder(torch.zeros((1, 3, 8, 8)), 8))
    other.tensor("quantize.embedding.weight", (20, 8))
    other.save(base)
    with pytest.raises(UserError, match="one code for 4 pixels a side; the tokenizer needs 2"):
        load_tokenizer(path, base=base)
    save_file(vqgan | {"quantize.embedding.weight": np.zeros((20, 9), np.float32)}, base)
    with pytest.raises(UserError, match="codes of 9 channels; the tokenizer needs 8"):
        load_tokenizer(path, base=base)
    save_file({k: v for k, v in released(net).items() if k != "patch_embed.weight"}, path)
    with pytest.raises(UserError, match="lacks patch_embed.weight: it is no whole checkpoint of karl"):
        load_tokenizer(path)
