"""`jtok tokenize` and `jtok detokenize` with a tiny random tokenizer: files, qualities, odd pictures, bad input."""

from __future__ import annotations

import re

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jtok import cli
from jtok.data.picture import read_picture
from jtok.errors import UserError
from jtok.evaluation.metrics.image_quality import psnr
from jtok.tokenizers.codec import Codec
from jtok.tokenizers.container import pack, unpack
from jtok.tokenizers.files import save_tokenizer
from jtok.tokenizers.titok import TiTok, TiTokConfig

SMALL = {"image": 8, "patch": 4, "tokens": 4, "encoder": (16, 1, 2), "decoder": (16, 1, 2), "drop_tail": True}
SMALL |= {"bottleneck": "fsq", "levels": (8, 5, 5), "code_width": 3}


def tiny(seed: int = 0) -> TiTok:
    return TiTok(TiTokConfig(**SMALL), nnx.Rngs(seed))


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture(scope="module")
def codec():
    return Codec(tiny(), overlap=2, batch=16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.safetensors"
    save_tokenizer(path, tiny())
    return f"--tokenizer={path}"


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(noise(21, 13)).save(path)
    return str(path)


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (21, 13), (8, 8)])
def test_pictures_of_any_size_survive_their_file(codec, size):
    picture = noise(*size)
    container = codec.encode(picture, tokens=3)
    reconstruction = codec.decode(unpack(pack(container), "x"))
    assert reconstruction.shape == picture.shape and reconstruction.dtype == np.uint8
    np.testing.assert_array_equal(reconstruction, codec.decode(container))


def test_a_tile_alone_is_what_the_tokenizer_says(codec):
    picture = noise(8, 8)
    net = tiny()
    want = net.decode(net.encode(picture[None] / np.float32(255), tokens=2))[0]
    got = codec.decode(codec.encode(picture, tokens=2))
    assert np.abs(got - np.asarray(want) * 255).max() <= 0.51


def test_quality_takes_the_fewest_tokens_of_each_tile(codec):
    picture = noise(40, 30)
    analysis = codec.analyse(picture)
    target = float(-10 * np.log10(np.median(analysis.errors.min(1))))  # half of the tiles reach it
    counts, missed = analysis.at_quality(target), analysis.missed(target)
    assert 0 < missed.sum() < len(missed) and (counts[missed] == 4).all()
    for error, count in zip(analysis.errors[~missed], counts[~missed], strict=True):
        below = [e for e, length in zip(error, analysis.lengths, strict=True) if length < count]
        assert error[analysis.lengths.index(count)] <= 10 ** (-target / 10) and all(
            e > 10 ** (-target / 10) for e in below
        )


def test_a_quality_that_tiles_reach_is_that_of_the_picture(codec):
    picture = noise(40, 30)
    target = float(-10 * np.log10(codec.analyse(picture).errors.min(1).max()))  # all tiles reach it
    reconstruction = codec.decode(codec.encode(picture, quality=target))
    assert psnr(picture[None] / 255, reconstruction[None] / 255)[0] >= target - 0.01


class Counting(TiTok):
    """Counts how often it is traced."""

    traced = 0

    def analyse(self, images, **how):
        Counting.traced += 1
        return super().analyse(images, **how)


def test_one_program_serves_all_sizes():
    codec = Codec(Counting(TiTokConfig(**SMALL), nnx.Rngs(0)), overlap=2, batch=16)
    for size in ((8, 8), (50, 60), (33, 9)):
        codec.encode(noise(*size), tokens=2)
    assert Counting.traced == 1


def test_from_a_picture_to_a_picture(capsys, photo, weights, tmp_path):
    file, out = str(tmp_path / "a.jtok"), str(tmp_path / "a.png")
    code, said, err = run(capsys, "tokenize", photo, "--quality=3dB", "-o", file, weights)
    assert code == 0 and not err
    assert re.search(r"13 x 21 pixels, \d+ bytes, [\d.]+ bits per pixel, \d+ tokens in .* PSNR [\d.]+ dB", said)
    code, _, _ = run(capsys, "detokenize", file, "-o", out, weights)
    assert code == 0 and Image.open(out).size == (13, 21)
    stated = float(re.search(r"PSNR ([\d.]+)", said)[1])
    assert psnr(noise(21, 13)[None] / 255, np.asarray(Image.open(out))[None] / 255)[0] == pytest.approx(
        stated, abs=0.01
    )


def test_default_names_do_not_touch_the_picture(capsys, photo, weights, tmp_path):
    before = open(photo, "rb").read()
    assert run(capsys, "tokenize", photo, "--tokens=2", weights)[0] == 0
    assert run(capsys, "detokenize", str(tmp_path / "photo.jtok"), "--tokens=1", weights)[0] == 0
    assert (tmp_path / "photo_decoded.png").exists() and open(photo, "rb").read() == before


def test_a_quality_out_of_reach_takes_all_tokens_and_says_so(capsys, photo, weights, tmp_path):
    code, said, err = run(capsys, "tokenize", photo, "--quality", "50 dB", weights)
    assert code == 0 and "4 each" in said
    assert re.search(r"50 dB is out of reach in (\d+) of \1 tiles, which take all 4 tokens; the image has [\d.]+", err)


def saved(tmp_path, image: Image.Image, name: str = "x.png", **how) -> str:
    image.save(tmp_path / name, **how)
    return str(tmp_path / name)


def test_transparent_pixels_become_white(tmp_path):
    picture, said = read_picture(saved(tmp_path, Image.new("RGBA", (3, 2), (255, 0, 0, 0))))
    assert (picture == 255).all() and said == ["alpha channel composited on white"]
    palette = Image.new("P", (3, 2))
    palette.putpalette([10, 20, 30] * 2)
    picture, said = read_picture(saved(tmp_path, palette, transparency=0))
    assert (picture == 255).all() and said == ["palette converted to RGB", "alpha channel composited on white"]


def test_other_pixel_formats_are_converted_aloud(tmp_path):
    picture, said = read_picture(saved(tmp_path, Image.fromarray(np.full((2, 3), 32896, np.uint16))))
    assert picture.shape == (2, 3, 3) and (picture == 128).all() and said == ["16 bits a channel read as 8"]
    picture, said = read_picture(saved(tmp_path, Image.new("CMYK", (3, 2), (0, 0, 0, 0)), "x.jpg"))
    assert (picture == 255).all() and said == ["CMYK converted to RGB without a colour profile"]
    palette = Image.new("P", (3, 2))
    palette.putpalette([10, 20, 30])
    picture, said = read_picture(saved(tmp_path, palette))
    assert (picture == [10, 20, 30]).all() and said == ["palette converted to RGB"]
    picture, said = read_picture(saved(tmp_path, Image.new("L", (3, 2), 7)))
    assert (picture == 7).all() and picture.shape == (2, 3, 3) and not said


def test_sixteen_bit_colour_is_noticed(tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + struct.pack(">3H", 0x80FF, 0, 0xFFFF) * 2
    data = chunk(b"IHDR", struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(row))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b""))
    picture, said = read_picture(tmp_path / "x.png")
    assert (picture == [0x80, 0, 0xFF]).all() and said == ["16 bits a channel read as 8"]


def test_orientation_is_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture, said = read_picture(saved(tmp_path, Image.fromarray(noise(4, 9)), "x.jpg", exif=exif))
    assert picture.shape == (9, 4, 3) and said == ["turned as its orientation tag says"]


def test_notes_stand_on_stderr(capsys, tmp_path, weights):
    path = saved(tmp_path, Image.new("LA", (1, 1), (9, 128)))
    code, said, err = run(capsys, "tokenize", path, "--tokens=1", weights)
    assert code == 0 and "1 x 1 pixels" in said and "alpha channel composited on white" in err


def test_pictures_that_cannot_be_used(tmp_path):
    frames = [Image.fromarray(noise(4, 4)), Image.fromarray(255 - noise(4, 4))]
    with pytest.raises(UserError, match="holds 2 frames"):
        read_picture(saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:]))
    with pytest.raises(UserError, match="floating-point"):
        read_picture(saved(tmp_path, Image.new("F", (2, 2)), "x.tif"))
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UserError, match="cannot read the image"):
        read_picture(tmp_path / "text.jpg")
    whole = saved(tmp_path, Image.fromarray(noise(40, 40)), "half.png")
    half = open(whole, "rb").read()[:900]
    open(whole, "wb").write(half)
    with pytest.raises(UserError, match="cannot read the image"):
        read_picture(whole)


BAD = {
    "no picture": (["tokenize"], "there is no image"),
    "a picture that is not there": (["tokenize", "no/such.png", "--tokens=1"], "no/such.png"),
    "quality out of range": (["tokenize", "PHOTO", "--quality=99dB"], "99 dB is out of range"),
    "negative quality": (["tokenize", "PHOTO", "--quality=-3"], "out of range"),
    "quality that is none": (["tokenize", "PHOTO", "--quality=good"], "not a PSNR"),
    "both": (["tokenize", "PHOTO", "--quality=20", "--tokens=2"], "give one of the two"),
    "too many tokens": (["tokenize", "PHOTO", "--tokens=5"], "this tokenizer has 1 to 4"),
    "too much overlap": (["tokenize", "PHOTO", "--tokens=2", "--overlap=5"], "overlap by 0 to 4"),
    "onto the picture": (["tokenize", "PHOTO", "--out=PHOTO"], "is the image itself"),
    "no such tokenizer": (["tokenize", "PHOTO", "--tokenizer=no/such"], "no checkpoint at 'no/such'"),
    "no file": (["detokenize"], "there is no file"),
    "a file that is not there": (["detokenize", "no/such.jtok"], "cannot read 'no/such.jtok'"),
    "a picture instead of a code": (["detokenize", "PHOTO"], "is no .jtok file"),
    "not a PNG": (["detokenize", "x.jtok", "--out=x.bmp"], "ends in .png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(capsys, photo, weights, case):
    argv, said = BAD[case]
    argv = [arg.replace("PHOTO", photo) for arg in argv]
    code, out, err = run(capsys, *argv[:1], weights, *argv[1:])
    assert code == 2 and not out and err.count("\n") == 1 and said in err


def test_another_tokenizers_file_is_refused(capsys, photo, weights, tmp_path):
    other = tmp_path / "other.safetensors"
    save_tokenizer(other, tiny(1))
    assert run(capsys, "tokenize", photo, "--tokens=2", weights)[0] == 0
    code, _, err = run(capsys, "detokenize", str(tmp_path / "photo.jtok"), f"--tokenizer={other}")
    assert code == 2 and "was made by the tokenizer" in err and not (tmp_path / "photo_decoded.png").exists()


def test_a_tokenizer_without_ids_is_refused():
    with pytest.raises(UserError, match="FSQ or VQ"):
        Codec(TiTok(TiTokConfig(**SMALL | {"bottleneck": "kl"}), nnx.Rngs(0)))
