"""One small set of images in every format: three of class `cat` (0), two of class `dog` (1), image `i` of shade 40 i.

`corrupt` is the place of one image (in the order of every format) whose bytes are cut short.
"""

import io
import json
import pathlib
import tarfile

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest

from jtok.data import Encoded, write_arrayrecord

LABELS = (0, 0, 0, 1, 1)


def png(shade: int, height: int = 24, width: int = 32) -> bytes:
    noise = np.random.default_rng(shade).integers(0, 20, (height, width, 3))  # does not compress: a cut shows
    file = io.BytesIO()
    PIL.Image.fromarray((shade + noise).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def encoded_images(corrupt: int | None) -> list[bytes]:
    images = [png(40 * place) for place in range(len(LABELS))]
    return [data[: len(data) // 2] if place == corrupt else data for place, data in enumerate(images)]


def write_folder(path: pathlib.Path, images: list[bytes]) -> None:
    for place, (data, label) in enumerate(zip(images, LABELS, strict=True)):
        folder = path / "train" / ("cat", "dog")[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{place}.png").write_bytes(data)


def write_parquet(path: pathlib.Path, images: list[bytes]) -> None:
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for shard, rows in enumerate((range(0, 2), range(2, 5))):
        column = [{"bytes": images[row], "path": f"{row}.png"} for row in rows]
        table = pa.table({"image": column, "label": [LABELS[row] for row in rows]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        pa.parquet.write_table(table, path / f"train-0000{shard}-of-00002.parquet", row_group_size=2)


def write_webdataset(path: pathlib.Path, images: list[bytes]) -> None:
    (path / "train").mkdir()
    with tarfile.open(path / "train" / "shard-0.tar", "w") as tar:
        for place, (data, label) in enumerate(zip(images, LABELS, strict=True)):
            other = (f"{place}.cls", b"%d\n" % label) if place % 2 else (f"{place}.json", b'{"label": %d}' % label)
            for name, text in ((f"{place}.png", data), other):
                member = tarfile.TarInfo(name)
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))


def write_records(path: pathlib.Path, images: list[bytes]) -> None:
    examples = [Encoded("", data, label) for data, label in zip(images, LABELS, strict=True)]
    assert write_arrayrecord(path / "train-0.array_record", examples[:3]) == 3
    assert write_arrayrecord(path / "train-1.array_record", examples[3:]) == 2


WRITERS = {
    "folder": write_folder,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
    "arrayrecord": write_records,
}


@pytest.fixture(params=sorted(WRITERS))
def stored(request, tmp_path):
    """`stored(corrupt=None)` writes the images and returns (name of the format, directory)."""

    def write(corrupt: int | None = None) -> tuple[str, pathlib.Path]:
        WRITERS[request.param](tmp_path, encoded_images(corrupt))
        return request.param, tmp_path

    return write
