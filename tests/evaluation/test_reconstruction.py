"""What a tokenizer keeps, measured on one whose numbers are known; the command, its JSON and bad input."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jtok import cli
from jtok.errors import UserError
from jtok.evaluation.figures.prefixes import draw_whole
from jtok.evaluation.metrics.image_features import RANDOM_CONV
from jtok.evaluation.sweeps.reconstruction import evaluate_tokenizer, used, usual_counts
from jtok.tokenizers.code import Code, Tokenizer
from jtok.tokenizers.files import save_tokenizer
from jtok.tokenizers.titok import TiTok, TiTokConfig


class Halves(Tokenizer):
    """Two tokens: with one, the image has half its brightness, with both it is the image. Ids are 0 and 1 of 4."""

    def __init__(self):
        self.lengths, self.config, self.quantizer = (1, 2), SimpleNamespace(image=16), SimpleNamespace(size=4)

    def analyse(self, images, *, train=False, key=None):
        b = images.shape[0]
        ids = jnp.broadcast_to(jnp.arange(2), (b, 2))
        half = images.reshape(b, 1, -1) / 2
        return Code(jnp.concatenate([half, half], 1), ids, jnp.full(b, 2, jnp.int32))

    def synthesise(self, code, *, key=None):
        seen = jnp.arange(2) < code.count[:, None]
        return (code.latents * seen[..., None]).sum(1).reshape(-1, 16, 16, 3)


def pictures(n: int = 70) -> np.ndarray:
    return 2 * np.random.default_rng(0).integers(0, 128, (n, 16, 16, 3), np.uint8)  # even: half of it is a whole number


def test_numbers_of_a_tokenizer_that_is_known():
    half, whole = evaluate_tokenizer(Halves(), pictures(), (1, 2), batch=32)
    assert math.isinf(whole["psnr"]) and whole["ssim"] == pytest.approx(1)
    assert whole[RANDOM_CONV] == pytest.approx(0, abs=1e-6) and half[RANDOM_CONV] > 1e-3
    x = pictures() / 255
    error = np.square(np.round(x / 2 * 255) / 255 - x).mean((1, 2, 3))
    assert half["psnr"] == pytest.approx((-10 * np.log10(error)).mean(), abs=0.01)
    assert half["perplexity"] == pytest.approx(1) and whole["perplexity"] == pytest.approx(2)
    assert (half["usage"], whole["usage"]) == (0.25, 0.5)
    assert whole["bits_per_pixel"] == pytest.approx(2 * 2 / 256)
    assert whole["coded_bits_per_pixel"] == pytest.approx(2 * 1 / 256)
    assert "rfid" not in whole and "lpips" not in whole


def test_tokens_that_are_needed_need_no_prefix():
    code = Code(jnp.zeros((1, 3, 2)), None, jnp.array([2]), extra={"needed": jnp.array([[True, False, True]])})
    np.testing.assert_array_equal(used(code), [[True, False, True]])


def test_usual_counts():
    assert usual_counts(SimpleNamespace(prefix=True, lengths=tuple(range(1, 25)))) == (1, 2, 4, 8, 16, 24)
    assert usual_counts(SimpleNamespace(prefix=True, lengths=(32,))) == (32,)


def test_a_whole_picture_at_growing_numbers_of_tokens():
    figure, said = draw_whole(Halves(), np.tile(pictures(1)[0], (3, 2, 1)))
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles[0] == "picture" and titles[1].startswith("1 token\n") and titles[2].startswith("2 tokens\n")
    assert said.startswith("16 x 16 pixels from the picture's middle, 2 tokens, ")


def test_the_command(tmp_path, capsys):
    path = tmp_path / "tiny.safetensors"
    small = {"image": 16, "patch": 8, "tokens": 4, "encoder": (16, 1, 2), "decoder": (16, 1, 2), "drop_tail": True}
    save_tokenizer(path, TiTok(TiTokConfig(**small, bottleneck="fsq", levels=(8, 5, 5), code_width=3), nnx.Rngs(0)))
    run = ["evaluate", f"--tokenizer={path}", "--images=50"]
    assert cli.main([*run, "--tokens=1,4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["tokens"] for row in found["rows"]] == [1, 4] and found["side"] == 16 and found["inception"] is None
    for more, message in (
        ("--tokens=5", "5 tokens are requested; this tokenizer has 1 to 4"),
        ("--tokens=two", "is not a list of numbers"),
        ("--path=x", "takes no --path"),
        ("--data=folder", "give the directory"),
        (f"--inception={path}", "not the Inception network of FID"),
        (f"--lpips={path}", "LPIPS needs the tensors"),
        (f"--base={path}", "uses no base tokenizer"),
    ):
        assert cli.main([*run, more]) == 2
        assert message in capsys.readouterr().err


def test_a_length_that_is_not_there_is_refused_before_anything_runs():
    with pytest.raises(UserError, match="3 tokens are requested"):
        evaluate_tokenizer(Halves(), pictures(2), (3,))
