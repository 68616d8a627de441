"""Base tokenizers read from files with released names give what a PyTorch reference gives; other files are refused."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from jtok.errors import UserError
from jtok.tokenizers.autoencoder import ConvShape
from jtok.tokenizers.base_grid import Frozen
from jtok.tokenizers.bases import VQGAN, AutoencoderKL, KLConfig, open_base
from tests.tokenizers.conv_reference import Network, diffusers_name

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(1))


def last(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x.numpy(), 1, -1)


@nnx.jit(static_argnames="method")
def run(base, method: str, *inputs):
    """A method as one program, which compiles faster than its operations one by one."""
    return getattr(base, method)(*inputs)


def kl(net: Network, x, z) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(mean, logarithm of variance) of images and the image of latents, with the networks' own ranges."""
    moments = net.conv("quant_conv", net.encoder(x, 8), 8, 1)
    mean, variance = moments.chunk(2, 1)
    return mean, variance, net.decoder(net.conv("post_quant_conv", z, 4, 1))


@pytest.mark.parametrize("old", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_diffusers_autoencoder(images, tmp_path, old):
    net, z = Network(), torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))
    mean, variance, decoded = kl(net, 2 * images - 1, z)
    tensors = {diffusers_name(k, old=old): v.numpy() for k, v in net.tensors.items()}
    flat = {k: v[..., 0, 0] if "attentions" in k and v.ndim == 4 else v for k, v in tensors.items()}
    save_file({k: np.ascontiguousarray(v) for k, v in flat.items()}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"scaling_factor": 0.5, "shift_factor": 0.25}))
    base = open_base(tmp_path)
    assert isinstance(base, AutoencoderKL) and base.stride == 2 and base.channels == 4
    result = run(base, "posterior", last(images))
    np.testing.assert_allclose(result[0], last(mean), **CLOSE)
    np.testing.assert_allclose(result[1], last(variance), **CLOSE)
    np.testing.assert_allclose(run(base, "encode", last(images)), (last(mean) - 0.25) * 0.5, **CLOSE)
    np.testing.assert_allclose(run(base, "decode", (last(z) - 0.25) * 0.5), (last(decoded) + 1) / 2, **CLOSE)
    one, two = (run(base, "encode", last(images), jax.random.key(i)) for i in (0, 1))
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.parametrize("fine_tuned", [False, True])
def test_kl16(images, tmp_path, fine_tuned):
    net, z = Network(attention=(1,)), torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(2))
    mean, _, decoded = kl(net, images if fine_tuned else 2 * images - 1, z)
    path = tmp_path / "vae.safetensors"
    net.save(path, "base_tokenizer.vae." if fine_tuned else "")
    base = open_base(path)
    np.testing.assert_allclose(run(base, "encode", last(images)), last(mean) * 0.2325, **CLOSE)
    if fine_tuned:  # the code of ALIT and KARL decodes what it encoded without undoing the scale
        np.testing.assert_allclose(run(base, "decode", last(z)), last(decoded), **CLOSE)
    else:
        np.testing.assert_allclose(run(base, "decode", last(z) * 0.2325), (last(decoded) + 1) / 2, **CLOSE)


def test_taming_vqgan(images, tmp_path):
    net = Network(attention=(1,), decoder_attention=(1,))
    codes = net.conv("quant_conv", net.encoder(2 * images - 1, 8), 6, 1)
    book = net.tensor("quantize.embedding.weight", (20, 6))
    nearest = torch.cdist(codes.permute(0, 2, 3, 1).reshape(-1, 6), book).argmin(-1).reshape(2, 8, 8)
    decoded = net.decoder(net.conv("post_quant_conv", book[nearest].permute(0, 3, 1, 2), 8, 1))
    net.save(tmp_path / "vqgan.safetensors", **{"loss.discriminator.main.0.weight": torch.zeros(3)})
    base = open_base(tmp_path / "vqgan.safetensors")
    assert isinstance(base, VQGAN) and base.channels == 6
    np.testing.assert_allclose(run(base, "encode", last(images)), last(codes), **CLOSE)
    ids = run(base, "ids", last(images))
    np.testing.assert_array_equal(ids, nearest)
    assert len(np.unique(ids)) > 5
    np.testing.assert_allclose(run(base, "decode", base.embed(ids)), (last(decoded) + 1) / 2, **CLOSE)


@pytest.mark.parametrize("naming", ["mage", pytest.param("titok", marks=pytest.mark.slow)])
def test_maskgit_vqgan(images, tmp_path, naming):
    net = Network(blocks=2, maskgit=True)
    codes = net.encoder(images, 8)
    book = net.tensor("quantize.embedding.weight", (20, 8))
    decoded = net.decoder(codes)

    def rename(name):  # TiTok's file counts the blocks in the middle from zero
        if naming == "mage":
            return name
        name = name.replace("mid.block_1", "mid.0").replace("mid.block_2", "mid.1")
        return name.replace("upsample.conv", "upsample_conv")

    net.save(tmp_path / "vqgan.safetensors", rename=rename)
    base = open_base(tmp_path / "vqgan.safetensors")
    np.testing.assert_allclose(run(base, "encode", last(images)), last(codes), **CLOSE)
    np.testing.assert_allclose(run(base, "decode", last(codes)), last(decoded), **CLOSE)
    nearest = torch.cdist(codes.permute(0, 2, 3, 1).reshape(-1, 8), book).argmin(-1).reshape(2, 8, 8)
    np.testing.assert_array_equal(run(base, "ids", last(images)), nearest)


def test_bases_are_neither_trained_nor_saved_with_what_stands_on_them(images, tmp_path):
    net = Network(maskgit=True)
    net.decoder(net.encoder(images, 8))
    net.tensor("quantize.embedding.weight", (20, 8))
    net.save(tmp_path / "vqgan.safetensors")
    base = open_base(tmp_path / "vqgan.safetensors")
    assert not jax.tree.leaves(nnx.state(base, nnx.Param))
    assert len(jax.tree.leaves(nnx.state(base, Frozen))) == len(net.tensors)


def test_bad_files_are_refused(images, tmp_path):
    net, z = Network(), torch.zeros((2, 4, 8, 8))
    kl(net, images, z)
    path = tmp_path / "base.safetensors"
    save_file({"x": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="holds no base tokenizer: give the file of"):
        open_base(path)
    (tmp_path / "vqgan.ckpt").write_bytes(b"PK")
    with pytest.raises(UserError, match="convert it to safetensors.*torch.load"):
        open_base(tmp_path / "vqgan.ckpt")
    net.save(path, rename=diffusers_name)
    with pytest.raises(UserError, match="no config.json beside it"):
        open_base(path)
    net.save(path)
    whole = load_file(path)
    save_file({k: v for k, v in whole.items() if k != "decoder.up.0.block.1.conv2.weight"}, path)
    with pytest.raises(UserError, match="lacks decoder.up.0.block.1.conv2.weight"):
        open_base(path)
    save_file({k: v for k, v in whole.items() if not k.startswith("decoder")}, path)
    with pytest.raises(UserError, match="lacks decoder.conv_in.weight: it is no whole autoencoder"):
        open_base(path)
    save_file(whole | {"decoder.odd": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="has unknown decoder.odd"):
        open_base(path)
    save_file(whole | {"decoder.conv_out.bias": np.zeros(4, np.float32)}, path)
    with pytest.raises(UserError, match="decoder.conv_out.bias of .* has shape"):
        open_base(path)


def test_the_shape_of_stable_diffusion_has_its_published_parameters():
    shape = ConvShape(4, 128, (128, 256, 512, 512))
    state = nnx.state(nnx.eval_shape(lambda: AutoencoderKL(KLConfig(shape), nnx.Rngs(0))))
    leaves = jax.tree.leaves(state)
    assert (len(leaves), sum(x.size for x in leaves)) == (248, 83_653_863)
