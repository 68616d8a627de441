"""Tokenizers as programs: the same ids and images as the tokenizer's own, for any number of images or a fixed one."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from jtok import cli
from jtok.errors import UserError
from jtok.export import program
from jtok.export.tokenizer_programs import tokenizer_programs
from jtok.tokenizers.files import save_tokenizer
from jtok.tokenizers.titok import TiTok, TiTokConfig

TINY = {"image": 16, "patch": 8, "tokens": 4, "encoder": (16, 1, 2), "decoder": (16, 1, 2)}
FSQ = {"bottleneck": "fsq", "levels": (8, 5, 5), "code_width": 3, "drop_tail": True}


def make(**fields):
    return TiTok(TiTokConfig(**{**TINY, **fields}), nnx.Rngs(0))


def read(path):
    return export.deserialize(bytearray(path.read_bytes()))


@pytest.mark.slow
def test_encode_and_decode_are_the_tokenizers_own(tmp_path, capsys):
    net = make(**FSQ)
    save_tokenizer(tmp_path / "tiny.safetensors", net)
    argv = ["export", f"--tokenizer={tmp_path / 'tiny.safetensors'}", "--format=stablehlo", f"--out={tmp_path / 'out'}"]
    assert cli.main(argv) == 0, capsys.readouterr().err
    encode, decode = (read(tmp_path / "out" / f"{name}.stablehlo") for name in ("encode", "decode"))
    for count in (1, 3):
        images = np.random.default_rng(count).integers(0, 256, (count, 16, 16, 3), np.uint8)
        code = encode.call(images)
        own = net.encode(jnp.asarray(images, jnp.float32) / 255)
        np.testing.assert_array_equal(code["ids"], own.ids)
        np.testing.assert_array_equal(code["count"], own.count)
        for tokens in (4, 1):
            again = decode.call(code["ids"], jnp.full(count, tokens, jnp.int32))["images"]
            expected = np.round(np.asarray(net.decode(own, tokens)) * 255)
            assert again.dtype == jnp.uint8 and np.abs(again - expected).max() <= 1  # where it rounds the other way
    card = json.loads((tmp_path / "out" / "model_card.json").read_text())
    assert card["format"]["encode"] == "uint8[batch, 16, 16, 3] -> count int32[batch], ids int32[batch, 4]"
    assert card["cost_of_an_image"]["encode_gmacs"] > 0 and card["model"]["levels"] == [8, 5, 5]
    assert "TiTok, 1 to 4 tokens an image" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_a_fixed_batch_and_latents_without_ids():
    encode, decode = tokenizer_programs(make(bottleneck="kl", code_width=3))
    made = program.portable(encode, 2)
    assert [a.shape for a in made.in_avals] == [(2, 16, 16, 3)]
    assert made.out_tree.unflatten(made.out_avals)["latents"].shape == (2, 4, 3)
    assert [a.shape for a in decode.arguments(5)] == [(5, 4, 3), (5,)]


@pytest.mark.slow
def test_programs_of_accelerators_hold_kernels():
    encode, _ = tokenizer_programs(make(codebook=128, code_width=8))
    assert "tpu_custom_call" in program.with_kernels(encode, "tpu", 2).mlir_module()
    assert "custom_call @tpu" not in program.portable(encode).mlir_module()


def test_a_tokenizer_that_reads_text_is_refused():
    with pytest.raises(UserError, match="plain images of one size"):
        tokenizer_programs(make(text_length=3, text_width=4))
