import io
import logging
import os
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest

from jtok.data import Encoded, FolderSource, Images, make_dataset, write_arrayrecord
from jtok.data.arrayrecord import ArrayRecordSource
from jtok.data.pipeline import FORMATS
from jtok.data.transforms import centre_crop, random_crop_box, random_resized_crop
from jtok.errors import UserError


def shade(example):
    return int(example["image"].mean()) // 40


def test_every_format_gives_the_same_examples(stored):
    name, path = stored()
    dataset = make_dataset(name, "train", path=path, size=16, augment=False)
    examples = [dataset[index] for index in (4, 1, 0, 3, 2)]
    assert len(dataset) == 5
    assert [shade(example) for example in examples] == [4, 1, 0, 3, 2]
    assert [int(example["label"]) for example in examples] == [1, 0, 0, 1, 0]
    assert all(example["image"].shape == (16, 16, 3) and example["image"].dtype == np.uint8 for example in examples)
    assert all(example["label"].dtype == np.int32 for example in examples)
    source = FORMATS[name](path, "train")
    assert source.classes == (("cat", "dog") if name in ("folder", "parquet") else ())


def test_a_corrupt_image_is_replaced_counted_and_named_in_the_log(stored, caplog):
    name, path = stored(corrupt=2)
    images = Images(FORMATS[name](path, "train"))
    with caplog.at_level(logging.WARNING):
        shades = [shade(images[index]) for index in (0, 1, 2, 3, 4, 2)]
    assert shades == [0, 1, 3, 3, 4, 3]  # its successor stands in
    assert list(images.skipped) == [2]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and "(1 so far)" in messages[0]  # once, however often it is asked for
    names = {
        "folder": os.path.join("cat", "2.png"),
        "parquet": "row 0 of row group 0 of ",
        "webdataset": "2 in ",
        "arrayrecord": f"record 2 of {path / 'train-0.array_record'}",
    }
    assert names[name] in messages[0] and names[name] in images.skipped[2] and str(path) in messages[0]


def test_verify_leaves_a_corrupt_image_out(stored):
    name, path = stored(corrupt=4)
    dataset = make_dataset(name, "train", path=path, size=16, augment=False, verify=True)
    assert [shade(dataset[index]) for index in range(len(dataset))] == [0, 1, 2, 3]


def test_the_last_image_is_replaced_by_the_first(tmp_path):
    for file, data in (("a/0.png", 200), ("a/1.png", None)):
        (tmp_path / "train" / file).parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            (tmp_path / "train" / file).write_bytes(b"no image")
        else:
            PIL.Image.new("L", (8, 8), data).save(tmp_path / "train" / file)
    images = Images(FolderSource(tmp_path, "train"))
    assert (images[1]["image"] == 200).all()
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"")
    images = Images(FolderSource(tmp_path, "train"))
    with pytest.raises(UserError, match="None of the 2 images can be read .*0.png"):
        images[1]
    with pytest.raises(UserError, match="None of the 2 images can be read"):
        make_dataset("folder", "train", path=tmp_path, verify=True)


def test_a_damaged_record_is_skipped_too(tmp_path):
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (1, 2, 3)).save(file, "PNG")
    examples = [Encoded("", file.getvalue(), label) for label in range(3)]
    write_arrayrecord(tmp_path / "train.array_record", examples)
    source = ArrayRecordSource(tmp_path, "train")
    assert [source[index].label for index in range(3)] == [0, 1, 2]
    data = (tmp_path / "train.array_record").read_bytes()
    place = data.index(b"IHDR", data.index(b"IHDR") + 1)  # in the second record
    (tmp_path / "train.array_record").write_bytes(data[:place] + b"XXXX" + data[place + 4 :])
    images = Images(ArrayRecordSource(tmp_path, "train"))
    assert [int(images[index]["label"]) for index in range(3)] == [0, 2, 2]
    assert list(images.skipped) == [1]


def test_writing_records_that_fails_leaves_no_file(tmp_path):
    def examples():
        yield Encoded("", b"data", 0)
        raise OSError("the disk of the source went away")

    with pytest.raises(OSError, match="went away"):
        write_arrayrecord(tmp_path / "train.array_record", examples())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_missing_and_empty_directories(name, tmp_path):
    for path, words in ((tmp_path / "nowhere", "There is no data directory"), (tmp_path, "is empty")):
        with pytest.raises(UserError, match=words):
            make_dataset(name, "train", path=path)
    (tmp_path / "README").write_text("no data")
    with pytest.raises(UserError, match="is a file"):
        make_dataset(name, "train", path=tmp_path / "README")
    with pytest.raises(UserError, match="There (is no 'train' directory|are no train files)"):
        make_dataset(name, "train", path=tmp_path)
    with pytest.raises(UserError, match="give the directory"):
        make_dataset(name, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="There are no (images in|train files)"):
        make_dataset(name, "train", path=tmp_path)


@pytest.mark.parametrize(
    "name, file, words",
    [
        ("parquet", "train.parquet", "not a whole Parquet file"),
        ("webdataset", "train-0.tar", "not a whole, uncompressed tar file"),
        ("arrayrecord", "train-0.array_record", "not a whole ArrayRecord file"),
    ],
)
@pytest.mark.parametrize("data", [b"", b"this is something else, and long enough to look like data" * 9])
def test_files_of_another_format(name, file, words, data, tmp_path):
    (tmp_path / file).write_bytes(data)
    with pytest.raises(UserError, match=words):
        make_dataset(name, "train", path=tmp_path)


def test_a_file_cut_short_is_refused_by_name(stored):
    name, path = stored()
    if name == "folder":
        pytest.skip("a folder is no single file")
    file = sorted(file for file in path.rglob("*") if file.is_file())[-1]
    file.write_bytes(file.read_bytes()[:-11000] if name == "webdataset" else file.read_bytes()[:-40])
    with pytest.raises(UserError, match=f"{file.name}' is not a whole"):
        make_dataset(name, "train", path=path)


def test_parquet_columns(tmp_path):
    table = pa.table({"img": [b"x"], "label": [1.5], "text": ["a"]})
    pa.parquet.write_table(table, tmp_path / "test.parquet")
    for options, words in (
        ({}, "no column 'image'; its columns are img, label, text"),
        ({"image": "img"}, "is double; labels should be integers"),
        ({"image": "text"}, "'text' .* is string; it should be binary"),
    ):
        with pytest.raises(UserError, match=words):
            make_dataset("parquet", "test", path=tmp_path, **options)


def test_webdataset_image_without_label(tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "val-0.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "some/a.png")
    with pytest.raises(UserError, match="image some/a in .* has no label"):
        make_dataset("webdataset", "validation", path=tmp_path)


def test_a_split_that_lacks_a_class_has_the_same_labels(tmp_path):
    files = (
        "train/ant/0.png",
        "train/bee/0.png",
        "train/cat/0.png",
        "val/ant/0.png",
        "val/cat/.0.png",
        "val/cat/1.png",
    )
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (8, 8)).save(tmp_path / file)
    source = FolderSource(tmp_path, "validation")
    assert source.classes == ("ant", "bee", "cat")
    assert [source[index].label for index in range(len(source))] == [0, 2]


def test_centre_crop_cuts_the_centre_of_the_resized_image():
    image = np.zeros((256, 512, 3), np.uint8)
    image[16:240, 144:368] = 255  # the central 224 of a 256-pixel shorter side
    assert (centre_crop(image, 224) == 255).all()
    assert centre_crop(image, 32).shape == centre_crop(image[:10, :7], 32).shape == (32, 32, 3)
    assert (centre_crop(image[:, 128:384], 256, share=1) == image[:, 128:384]).all()


@pytest.mark.parametrize("height, width", [(100, 150), (30, 400), (400, 30), (1, 1)])
def test_random_crops_stay_inside_and_within_area_and_ratio(height, width):
    rng = np.random.default_rng(0)
    for _ in range(200):
        top, left, h, w = random_crop_box(height, width, rng)
        assert 0 <= top <= height - h and 0 <= left <= width - w and h > 0 and w > 0
        if min(height, width) >= 30:
            assert 0.7 < w / h < 1.4 and h * w / (height * width) > 0.05
    image = np.full((height, width, 3), 77, np.uint8)
    crop = random_resized_crop(image, 20, rng)
    assert crop.shape == (20, 20, 3) and (crop == 77).all()
