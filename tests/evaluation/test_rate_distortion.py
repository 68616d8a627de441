"""Rate and distortion with a tiny random tokenizer: whole files are counted, points are means, the command reports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flax import nnx

from jtok import cli
from jtok.data.photographs import PHOTOGRAPHS, photograph
from jtok.errors import UserError
from jtok.evaluation.sweeps.rate_distortion import RateDistortion, count_facts, default_config, lossy, means, png_bytes
from jtok.tokenizers.codec import Codec
from jtok.tokenizers.container import pack
from jtok.tokenizers.files import save_tokenizer
from jtok.tokenizers.titok import TiTok, TiTokConfig

pytestmark = pytest.mark.slow

SMALL = {"image": 16, "patch": 8, "tokens": 4, "encoder": (16, 1, 2), "decoder": (16, 1, 2), "drop_tail": True}
SMALL |= {"bottleneck": "fsq", "levels": (8, 5, 5), "code_width": 3}


@pytest.fixture(scope="module")
def tokenizer():
    return TiTok(TiTokConfig(**SMALL), nnx.Rngs(0))


@pytest.fixture(scope="module")
def codec(tokenizer):
    return Codec(tokenizer, batch=16)


def small_config():
    config = default_config()
    config.sweep.update({"shorter": 24, "tokens": (1, 4), "qualities": (8.0,), "jpeg": (10, 80), "webp": (50,)})
    config.sweep.crops = 20
    return config


def test_the_sweep_counts_whole_files(codec, tmp_path):
    study = RateDistortion(codec, small_config(), str(tmp_path), "jtok sweep")
    records = study.run(say=lambda text: None)
    assert len(records) == len(PHOTOGRAPHS["test"]) * (2 + 1 + 2 + 1)
    for record in records:
        picture = photograph(record["photograph"], 24)
        assert record["bits_per_pixel"] == pytest.approx(8 * record["bytes"] / picture[..., 0].size)
        if record["setting"] == "4 tokens":
            assert record["bytes"] == len(pack(codec.encode(picture, tokens=4)))
    assert json.loads((tmp_path / "records.json").read_text()) == records
    points = {(p["codec"], p["setting"]): p for p in means(records)}
    jpeg = [r["psnr"] for r in records if r["setting"] == "quality 80"]
    assert points["JPEG", "quality 80"]["psnr"] == pytest.approx(np.mean(jpeg))
    assert points["JPEG", "quality 80"]["psnr"] > points["JPEG", "quality 10"]["psnr"]


def test_other_codecs_are_pillows():
    picture = photograph("flower", 64)
    small, coarse = lossy(picture, "WEBP", 5)
    large, fine = lossy(picture, "WEBP", 90)
    assert small < large < png_bytes(picture) and coarse.shape == picture.shape
    assert np.square(fine - picture.astype(float)).mean() < np.square(coarse - picture.astype(float)).mean()


def test_counts_are_compared_with_sizes_as_png(codec):
    facts = list(count_facts(codec, "test", 20, (1.0, 8.0, 50.0)))
    assert facts[0]["tokens"] == 1 and np.isnan(facts[0]["spearman_png"]) and facts[0]["reached"] == 1
    assert facts[2]["tokens"] == 4 and facts[2]["reached"] == 0
    assert all(1 <= f["flat_grey"] <= 4 for f in facts)


def test_bad_sweeps_are_refused_before_they_run(codec, tmp_path):
    for field, value, said in (("tokens", (1, 5), "this tokenizer has 1 to 4"), ("qualities", (99.0,), "out of range")):
        config = small_config()
        config.sweep[field] = value
        with pytest.raises(UserError, match=said):
            RateDistortion(codec, config, str(tmp_path), "")


def test_the_command_writes_a_report(tokenizer, tmp_path, capsys):
    save_tokenizer(tmp_path / "tiny.safetensors", tokenizer)
    change = {"tokenizer": tmp_path / "tiny.safetensors", "shorter": 24, "tokens": (1, 4), "crops": 10}
    argv = [f"--config.sweep.{name}={value}" for name, value in change.items()]
    config = "--config=configs/tokenizer/sweep.py:quick"
    assert cli.main(["sweep", config, f"--workdir={tmp_path / 'run'}", *argv]) == 0
    text = (tmp_path / "run" / "report.html").read_text()
    assert "spearman_png" in text and "jtok, adaptive" in text and "data:image/png" in text
    assert (tmp_path / "run" / "rate_distortion.png").exists() and "WebP" in capsys.readouterr().out


def test_show_draws_a_picture_at_growing_lengths(tokenizer, tmp_path, capsys):
    save_tokenizer(tmp_path / "tiny.safetensors", tokenizer)
    png_at = tmp_path / "flower.png"
    from PIL import Image

    Image.fromarray(photograph("flower", 24)).save(png_at)
    argv = [f"--tokenizer={tmp_path / 'tiny.safetensors'}", f"--image={png_at}", f"--out={tmp_path / 'show.png'}"]
    assert cli.main(["show", *argv, "--quality=8dB"]) == 0
    assert "8 dB asked for" in capsys.readouterr().out and (tmp_path / "show.png").exists()
    assert cli.main(["show", *argv, "--quality=800dB"]) == 2
