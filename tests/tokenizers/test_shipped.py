"""The tokenizer that comes with jtok: what its page promises, on photographs that it was not trained on."""

from __future__ import annotations

import importlib.resources

import numpy as np
import pytest
from PIL import Image

from jtok import cli
from jtok.data.photographs import PHOTOGRAPHS, photograph
from jtok.evaluation.metrics.image_quality import psnr
from jtok.evaluation.sweeps.rate_distortion import count_facts
from jtok.tokenizers.codec import Codec
from jtok.tokenizers.shipped import ASSET, open_tokenizer

HELD_OUT = PHOTOGRAPHS["test"]


@pytest.fixture(scope="module")
def codec():
    return Codec(open_tokenizer("shipped"))


def test_it_is_small():
    assert (importlib.resources.files("jtok") / ASSET).stat().st_size <= 5e6


def test_a_picture_and_back_by_the_two_commands(tmp_path, capsys):
    photo, file, out = (str(tmp_path / name) for name in ("photo.png", "photo.jtok", "out.png"))
    Image.fromarray(photograph("flower", 64)).save(photo)
    assert cli.main(["tokenize", photo, "--quality=24dB", "-o", file]) == 0
    assert cli.main(["detokenize", file, "-o", out]) == 0
    assert "PSNR" in capsys.readouterr().out
    reconstruction = np.asarray(Image.open(out))
    assert psnr(photograph("flower", 64)[None] / 255, reconstruction[None] / 255)[0] > 20


def test_a_flat_grey_picture_takes_one_token_a_tile(codec):
    counts = codec.encode(np.full((70, 50, 3), 128, np.uint8), quality=28.0).counts
    assert (counts == 1).all()


@pytest.mark.slow
def test_more_tokens_are_never_worse_on_held_out_photographs(codec):
    """Mean PSNR of all tiles, at every length. The pooled error of all photographs, which the worst tiles make, may
    stand still: it is held to a hundredth of a decibel."""
    analyses = [codec.analyse(photograph(name, 192)) for name in HELD_OUT]
    weights = np.concatenate([f.tiling.weights().sum((1, 2)) for f in analyses])
    errors = np.concatenate([f.errors for f in analyses])
    assert (np.diff(-10 * np.log10(np.maximum(errors, 1e-10)).mean(0)) >= 0).all()
    pooled = -10 * np.log10((errors * weights[:, None]).sum(0) / weights.sum())
    assert (np.diff(pooled) >= -0.01).all()


@pytest.mark.slow
def test_counts_follow_how_complex_a_picture_is(codec):
    """The size as PNG knows nothing of the tokenizer."""
    (at,) = count_facts(codec, "test", 300, (24.0,), 256)
    assert at["spearman_png"] >= 0.6 and at["least"] == at["flat_grey"] == 1


@pytest.mark.slow
def test_no_seams(codec):
    """Where tiles meet the error steps hardly more than elsewhere; without overlap it steps at least twice as much."""
    picture = photograph("flower", 192)
    seams = []
    for overlap in (4, 0):
        own = codec if overlap == codec.overlap else Codec(open_tokenizer("shipped"), overlap=overlap)
        made = own.encode(picture, quality=28.0)
        seams.append(made.tiling.seam(own.decode(made).astype(float) - picture))
    assert seams[0] < 1.25 < 2 * seams[0] < seams[1]
