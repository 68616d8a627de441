"""`jtok bench tokenizers` on a tiny tokenizer; the shapes with random weights are those of their papers."""

from __future__ import annotations

import json

import jax
import pytest
from flax import nnx

from jtok import cli
from jtok.evaluation.bench.tokenizers import make_tokenizer
from jtok.tokenizers.base_grid import Frozen
from jtok.tokenizers.files import save_tokenizer
from jtok.tokenizers.titok import TiTok, TiTokConfig


def test_rows(tmp_path, capsys):
    path = tmp_path / "tiny.safetensors"
    small = {"image": 8, "patch": 4, "tokens": 4, "encoder": (16, 1, 2), "decoder": (16, 1, 2), "drop_tail": True}
    save_tokenizer(path, TiTok(TiTokConfig(**small, bottleneck="fsq", levels=(8, 5, 5), code_width=3), nnx.Rngs(0)))
    run = ["bench", "tokenizers", f"--tokenizer={path}", "--repeats=2", "--json"]
    assert cli.main([*run, "--batch=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    encode, decode = found["rows"]
    assert (encode["direction"], decode["direction"]) == ("encode", "decode") and encode["batch"] == 2
    for row in (encode, decode):
        assert row["ms_p10"] <= row["ms_median"] <= row["ms_p90"] and row["n"] >= 2
        assert row["images_per_second"] == pytest.approx(2 / row["ms_median"] * 1e3)
        rate = row["gflops_per_image"] * row["images_per_second"] / 1e3 / found["matmul_tflops"]
        assert row["share_of_matmul_rate"] == pytest.approx(rate)
    for more, message in (
        ("--batch=0", "batches of at least one image"),
        ("--batch=x", "not a list of numbers"),
        ("--dtype=int8", "must be float32 or bfloat16"),
        ("--tokenizer=nowhere", "there is no checkpoint at 'nowhere'"),
    ):
        assert cli.main([*run, more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_titok_l32_has_the_published_number_of_parameters():
    made = nnx.eval_shape(lambda: make_tokenizer("titok_l32"))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(made, nnx.Param)))
    assert count / 1e6 == pytest.approx(641, rel=0.02)


@pytest.mark.slow
def test_flextok_d18_brings_its_vae():
    made = nnx.eval_shape(lambda: make_tokenizer("flextok_d18"))
    assert (made.vae.channels, made.vae.stride, made.image_side) == (made.config.channels, 8, 256)
    assert jax.tree.leaves(nnx.state(made.vae, Frozen)) and not jax.tree.leaves(nnx.state(made.vae, nnx.Param))
