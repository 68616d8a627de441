"""Several sweeps of tokenizers in one report: their points side by side, and the bits that a quality costs."""

import json

import pytest

from jtok.errors import UserError
from jtok.evaluation.sweeps.rate_distortion import bits_at, read_units


def write(directory, scale):
    directory.mkdir()
    point = {"photograph": "x", "setting": "a", "ssim": 0.5}
    records = [
        {**point, "codec": "jtok, fixed", "bits_per_pixel": 0.1 * scale, "psnr": 20.0, "tokens": 4.0},
        {**point, "codec": "JPEG", "bits_per_pixel": 0.2, "psnr": 22.0},
    ]
    (directory / "records.json").write_text(json.dumps(records))
    (directory / "counts.json").write_text(json.dumps([{"quality": 20.0, "tokens": 3.0 * scale}]))


def test_other_codecs_stand_once_beside_every_tokenizer(tmp_path):
    for i, name in enumerate(("one", "two"), 1):
        write(tmp_path / name, i)
    points, counts = read_units({name: tmp_path / name for name in ("one", "two")})
    assert [(p["codec"], p["bits_per_pixel"]) for p in points] == [
        ("one, fixed", 0.1), ("JPEG", 0.2), ("two, fixed", 0.2),
    ]  # fmt: skip
    assert counts == [
        {"tokenizer": "one", "quality": 20.0, "tokens": 3.0},
        {"tokenizer": "two", "quality": 20.0, "tokens": 6.0},
    ]
    points, _ = read_units({"one": tmp_path / "one"})
    assert [p["codec"] for p in points] == ["jtok, fixed", "JPEG"]
    with pytest.raises(UserError, match="holds no sweep"):
        read_units({"none": tmp_path})


def test_bits_lie_between_measured_points_and_nowhere_else():
    curve = [(20.0, 0.1), (24.0, 0.4), (22.0, 0.2)]
    points = [{"codec": "a", "psnr": q, "bits_per_pixel": b} for q, b in curve]
    points.append({"codec": "b", "psnr": 21.0, "bits_per_pixel": 0.3})
    a, b = bits_at(points, (19.0, 20.0, 23.0, 25.0))
    assert a["19 dB"] is None and a["25 dB"] is None
    assert a["20 dB"] == pytest.approx(0.1) and a["23 dB"] == pytest.approx((0.2 * 0.4) ** 0.5)
    assert set(b.values()) == {"b", None}
