"""Pixels equal those of the reference's Pillow processors; images that are not plain RGB; sizes that are refused."""

import dataclasses
import logging

import numpy as np
import pytest
import transformers
from PIL import Image

from jtok.errors import UserError
from jtok.models.vlm.families.all import find
from jtok.models.vlm.families.llava import processing as llava
from jtok.models.vlm.families.llava_next import processing as llava_next
from jtok.models.vlm.families.llava_onevision import processing as onevision
from jtok.models.vlm.families.mllama import processing as mllama
from jtok.models.vlm.families.qwen2_5_vl import processing as qwen2_vl
from jtok.models.vlm.processing.images import MAX_SIDE, open_image
from jtok.models.vlm.processing.read_settings import from_configs, image_settings
from tests.models.processing.checkpoints import FAMILIES, picture, write

SIZES = [(56, 56), (100, 90), (37, 281), (300, 211), (3, 200), (400, 2), (2, 2), (113, 111), (28, 57)]
REFERENCE = {
    "llava": "CLIPImageProcessorPil",
    "llava_next": "LlavaNextImageProcessorPil",
    "llava_onevision": "LlavaOnevisionImageProcessorPil",
    "qwen2_5_vl": "Qwen2VLImageProcessorPil",
    "paligemma": "SiglipImageProcessorPil",
    "mllama": "MllamaImageProcessorPil",
}


def settings_of(family, **changes):
    config, stated, *_ = FAMILIES[family]
    return from_configs(family, config, {**stated, **changes}, stated)


def reference(family, images, **changes):
    stated = {**FAMILIES[family][1], **changes}
    return getattr(transformers, REFERENCE[family])(**stated)(images, return_tensors="np")


def close(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "paligemma"])
@pytest.mark.parametrize("size", SIZES)
def test_one_crop(family, size):
    image = Image.fromarray(picture(*size))
    (ours,) = find(family).prepare([image], settings_of(family))
    close(ours.pixels, reference(family, [image])["pixel_values"])
    assert ours.size == size and ours.tokens == ours.slots == 16


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("square", [{"height": 42, "width": 42}, {"height": 56, "width": 56}])
def test_crop_of_an_image_smaller_than_it(size, square):
    """The shorter side becomes 30 pixels, so zeros surround it, in full or on two sides."""
    image = Image.fromarray(picture(*size))
    changes = dict(size={"shortest_edge": 30}, crop_size=square)
    config = dict(vision_config=dict(image_size=square["height"], patch_size=14))
    (ours,) = llava.prepare([image], from_configs("llava", config, changes, {}))
    close(ours.pixels, reference("llava", [image], **changes)["pixel_values"])


@pytest.mark.parametrize("size", SIZES)
def test_padding_to_a_square(size):
    image = Image.fromarray(picture(*size))
    (ours,) = llava.prepare([image], settings_of("llava", do_pad=True))
    theirs = transformers.LlavaImageProcessorPil(**FAMILIES["llava"][1], do_pad=True)([image], return_tensors="np")
    close(ours.pixels, theirs["pixel_values"])


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [size for size in SIZES if size != (400, 2)])
def test_mosaics(family, size):
    image = Image.fromarray(picture(*size))
    (ours,) = find(family).prepare([image], settings_of(family))
    theirs = reference(family, [image])
    close(ours.pixels, theirs["pixel_values"][0])
    assert ours.size == tuple(theirs["image_sizes"][0])


def test_several_images_of_onevision_are_one_crop_each():
    images = [Image.fromarray(picture(*size)) for size in SIZES]
    ours = onevision.prepare(images, settings_of("llava_onevision"))
    theirs = reference("llava_onevision", [images])["pixel_values"]
    close(np.stack([one.pixels for one in ours]), theirs)
    assert all(one.tokens == 17 and one.spans[0].newline == "end" for one in ours)


def test_frames_of_onevision_are_resized_one_by_one():
    frames = [Image.fromarray(picture(40, 70, seed)) for seed in range(3)]
    ours = onevision.prepare_video(frames, settings_of("llava_onevision"), fps=1.0)
    square = transformers.SiglipImageProcessorPil(size={"height": 56, "width": 56})(frames, return_tensors="np")
    close(ours.pixels, square["pixel_values"])
    assert ours.tokens == ours.slots == 3 * 4 + 1


@pytest.mark.parametrize("size", SIZES)
def test_patches_of_qwen(size):
    image = Image.fromarray(picture(*size))
    (ours,) = qwen2_vl.prepare([image], settings_of("qwen2_5_vl"))
    theirs = reference("qwen2_5_vl", [image])
    close(ours.pixels, theirs["pixel_values"])
    assert ours.grid == tuple(theirs["image_grid_thw"][0]) and ours.tokens == len(ours.pixels) // 4


def test_video_of_qwen_pairs_frames_and_repeats_the_last():
    """Each step of a video is what its two frames give alone: the first from one, the second from the other."""
    frames = [Image.fromarray(picture(60, 90, seed)) for seed in range(3)]
    settings = settings_of("qwen2_5_vl")
    ours = qwen2_vl.prepare_video(frames, settings, fps=1.0)
    alone = [reference("qwen2_5_vl", [frame])["pixel_values"].reshape(-1, 3, 2, 196) for frame in frames]
    steps = ours.pixels.reshape(2, -1, 3, 2, 196)
    close(steps[0, :, :, 0], alone[0][:, :, 0])
    close(steps[0, :, :, 1], alone[1][:, :, 1])
    close(steps[1], alone[2])
    assert ours.grid[0] == 2 and ours.seconds == 2.0


@pytest.mark.parametrize("size", SIZES)
def test_tiles_of_mllama(size):
    images = [Image.fromarray(picture(*size)), Image.fromarray(picture(70, 160, 1))]
    ours = mllama.prepare(images, settings_of("mllama"))
    theirs = reference("mllama", [images])
    close(np.stack([one.pixels for one in ours])[None], theirs["pixel_values"])
    assert [one.aspect for one in ours] == theirs["aspect_ratio_ids"][0].tolist()
    assert [one.real for one in ours] == theirs["aspect_ratio_mask"][0].sum(-1).tolist()
    assert [one.tokens for one in ours] == [17 * one.real for one in ours]


@pytest.mark.parametrize(
    "family, side",
    [
        ("llava", 336),
        ("llava_next", 336),
        ("llava_onevision", 384),
        ("paligemma", 224),
        ("mllama", 560),
        ("qwen2_5_vl", 0),
    ],
)
def test_sizes_of_released_checkpoints(family, side):
    """Nothing but the tower's size is stated: the rest is the family's own settings."""
    image = Image.fromarray(picture(420, 700))
    tower = dict(image_size=side, patch_size=14) if side else {}
    (ours,) = find(family).prepare([image], from_configs(family, {"vision_config": tower}, {}, {}))
    square = {"height": side, "width": side}
    stated = dict(size={"shortest_edge": side}, crop_size=square) if family in ("llava", "llava_next") else {}
    if family in ("llava_onevision", "paligemma", "mllama"):
        stated = dict(size=square)
    theirs = getattr(transformers, REFERENCE[family])(**stated)([image], return_tensors="np")["pixel_values"]
    close(ours.pixels, theirs.reshape(ours.pixels.shape))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1", "CMYK"])
def test_other_modes_convert_as_the_reference_does_and_say_so(mode, caplog):
    image = Image.fromarray(picture(60, 80)).convert(mode)
    with caplog.at_level(logging.INFO, "jtok"):
        (ours,) = llava.prepare([open_image(image)], settings_of("llava"))
    close(ours.pixels, reference("llava", [image])["pixel_values"])
    assert f"mode {mode} is converted to RGB" in caplog.text
    assert ("transparency is dropped" in caplog.text) == (mode in ("RGBA", "LA"))


def test_sixteen_bits_are_scaled_to_eight(tmp_path, caplog):
    """White stays white: Pillow's own conversion would clip everything above 255."""
    deep = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = np.round(deep / 257)
    with caplog.at_level(logging.INFO, "jtok"):
        for image in (deep, Image.fromarray(deep), tmp_path / "deep.png", np.stack([deep] * 3, -1)):
            caplog.clear()
            assert np.array_equal(np.asarray(open_image(image))[..., 0], expected)
            assert "divided by 257" in caplog.text


def test_arrays_and_files_are_the_images_they_hold(tmp_path):
    array = picture(30, 40)
    image = Image.fromarray(array)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    image.save(tmp_path / "rotated.png", exif=exif)
    for same in (array, image, np.dstack([array, array[..., :1]])):
        assert np.array_equal(np.asarray(open_image(same)), array)
    assert np.array_equal(np.asarray(open_image(array[..., :1])), np.repeat(array[..., :1], 3, 2))
    assert np.array_equal(np.asarray(open_image(tmp_path / "rotated.png")), np.rot90(array, -1))


@pytest.mark.parametrize(
    "image, says",
    [
        (np.zeros((1, 1, 3), np.uint8), "1 x 1 pixels: each side must have at least 2"),
        (np.zeros((1, 50), np.uint8), "at least 2"),
        (np.zeros((40_000, 2), np.uint8), "at most 39999"),
        (np.zeros((2, 402), np.uint8), "at most 200 times the shorter"),
        (np.zeros((8, 8, 3), np.float32), "not float32"),
        (np.zeros((3, 8, 8), np.uint8), "not of shape (3, 8, 8)"),
        (Image.new("F", (8, 8)), "floating-point"),
        ([[1, 2], [3, 4]], "not list"),
    ],
)
def test_images_that_are_refused(image, says):
    with pytest.raises(UserError, match=says.replace("(", r"\(").replace(")", r"\)")):
        open_image(image)


def test_files_that_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(picture(60, 60)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    Image.new("1", (MAX_SIDE + 1, 300)).save(tmp_path / "long.png")
    for name, says in {
        "text.png": "cannot be read as an image",
        "half.png": "cannot be read as an image",
        "none.png": "cannot be read as an image",
        "long.png": "at most 39999",
    }.items():
        with pytest.raises(UserError, match=says) as error:
            open_image(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_too_many_pixels_is_refused_by_its_header(tmp_path):
    header = b"P5 39999 39999 255\n"
    (tmp_path / "huge.pgm").write_bytes(header)
    with pytest.raises(UserError, match="more than 178,956,970 pixels"):
        open_image(tmp_path / "huge.pgm")


def test_an_image_that_vanishes_in_every_pinpoint():
    with pytest.raises(UserError, match="vanishes in every shape"):
        llava_next.prepare([Image.new("RGB", (2, 400))], settings_of("llava_next"))


@pytest.mark.parametrize(
    "family, files, says",
    [
        ("llava", dict(preprocessor_config={"do_rescale": False}), "do_rescale is false"),
        ("llava", dict(preprocessor_config={"size": 48, "crop_size": 48}), "the tower takes 56 x 56"),
        ("llava", dict(preprocessor_config=[1]), "JSON list"),
        ("llava", dict(config={"model_type": "resnet"}), "model type 'resnet'"),
        ("llava", dict(config=None), "no config.json"),
        ("paligemma", dict(preprocessor_config={"size": {"height": 56, "width": 42}}), "see squares"),
        ("paligemma", dict(preprocessor_config={"size": {"longest_edge": 56}}), "KeyError: 'height'"),
        ("mllama", dict(preprocessor_config={"resample": "bicubic"}), "not what a mllama model has"),
    ],
)
def test_settings_that_are_refused(family, files, says, tmp_path):
    with pytest.raises(UserError, match=says):
        image_settings(write(tmp_path, family, **files))


def test_where_settings_come_from(tmp_path):
    """processor_config.json of newer checkpoints wins; a missing file or field leaves the family's own."""
    assert image_settings(write(tmp_path, "llava", preprocessor_config=None)).crop == (56, 56)
    assert image_settings(tmp_path).mean[0] == pytest.approx(0.4815, abs=1e-4)
    newer = {"image_processor": {"image_mean": [0.25, 0.5, 0.75], "size": {"shortest_edge": 64}}}
    settings = image_settings(write(tmp_path, "llava", processor_config=newer))
    assert settings.mean == (0.25, 0.5, 0.75) and settings.shortest == 64
    video = {"size": {"shortest_edge": 784, "longest_edge": 1568}}
    qwen = image_settings(write(tmp_path / "qwen", "qwen2_5_vl", video_preprocessor_config=video))
    assert qwen.frame_pixels == (784, 1568) and qwen.pixels == (56 * 56, 112 * 112)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_is_read_as_what_it_was_made_from(family, tmp_path):
    write(tmp_path, family, preprocessor_config=None)
    getattr(transformers, REFERENCE[family])(**FAMILIES[family][1]).save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    saved, made = image_settings(tmp_path), settings_of(family)
    assert dataclasses.replace(saved, frame_pixels=made.frame_pixels) == made
