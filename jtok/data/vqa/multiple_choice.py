"""Readers of benchmarks with choices to pick from: ScienceQA (arXiv:2209.09513) and MMBench (2307.06281)."""

import base64
import binascii
import pathlib
import string
from typing import Any

import grain.python as grain
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from jtok.data.vqa.source import dataset, field, of_kind, read_json, read_text, rest, sample
from jtok.errors import UserError

Path = str | pathlib.Path
LETTERS = string.ascii_uppercase
MMBENCH_CHOICES = "ABCD"
_REFERENCE_LENGTH = 64  # an image column this short names the row that has the image


def _letter(answer: Any, choices: list[str], where: str) -> str:
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(f"The answer of {where} is {answer!r}, which is not one of its {len(choices)} choices.")
    return LETTERS[answer]


def scienceqa(path: Path, split: str = "test", *, with_image_only: bool = False) -> grain.MapDataset:
    """ScienceQA: the folder with `problems.json`, `pid_splits.json` and `images/<split>/<pid>/image.png`.

    split: one of `pid_splits.json` (train, val, test, minival, ...). with_image_only: leave out the questions that
    have no image, about half, whose `image` is None. The answer is a letter; hint, subject, ... are meta.
    Raises UserError for missing or damaged files, an unknown split, or an answer that is not among the choices.
    """
    problems, splits = (
        read_json(pathlib.Path(path) / "problems.json"),
        read_json(pathlib.Path(path) / "pid_splits.json"),
    )
    if split not in splits:
        raise UserError(f"ScienceQA has no split '{split}'; it has {', '.join(splits)}.")
    samples = []
    for pid in splits[split]:
        where = f"problem {pid} of '{path}'"
        row = of_kind(field(problems, str(pid), f"'{path}/problems.json'"), dict, where)
        name, choices = row.get("image"), list(field(row, "choices", where))
        if name or not with_image_only:
            image = pathlib.Path(path) / "images" / str(row.get("split", split)) / str(pid) / name if name else None
            answers = [_letter(field(row, "answer", where), choices, where)]
            question, meta = field(row, "question", where), rest(row, "question", "choices", "answer", "image")
            samples.append(sample(pid, image, question, answers, meta, choices))
    return dataset(samples, path)


def scienceqa_parquet(path: Path, *, with_image_only: bool = False) -> grain.MapDataset:
    """ScienceQA as its authors' JSON was put into one Parquet file: `image` {bytes, path}, `choices`, `answer`, ...

    The columns are those of `problems.json`; samples are as of `scienceqa`, with the row for an id.
    Raises UserError for a missing or damaged file, a missing column, or an answer that is not among the choices.
    """
    try:
        rows = pa.parquet.read_table(path).to_pylist()
    except FileNotFoundError as error:
        raise UserError(f"There is no file '{path}'.") from error
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"'{path}' is not a whole Parquet file ({str(error).splitlines()[0]}).") from error
    samples = []
    for place, row in enumerate(rows):
        where = f"row {place} of '{path}'"
        image, choices = (field(row, "image", where) or {}).get("bytes"), list(field(row, "choices", where))
        if image or not with_image_only:
            answers = [_letter(field(row, "answer", where), choices, where)]
            question, meta = field(row, "question", where), rest(row, "question", "choices", "answer", "image")
            samples.append(sample(place, image, question, answers, meta, choices))
    return dataset(samples, path)


def mmbench(path: Path, *, circular: bool = True) -> grain.MapDataset:
    """MMBench: a TSV file with the columns index, question, A to D, image (base64), and hint, answer, category, ...

    circular: ask every question once per choice, the choices moved up by one each time, as its score wants; meta has
    the `index` of the question and the `rotation`. Empty choices do not count. A short `image` is the index of the
    row that has the image. Without the answer column (test split) there are no answers.
    Raises UserError for a missing or damaged file, missing columns, an answer that is not one of the choices, or an
    image that is not base64.
    """
    rows = _read_tsv(path)
    images = {row["index"]: row["image"] for row in rows}
    samples = []
    for place, row in enumerate(rows):
        where = f"row {place} of '{path}'"
        letters = [letter for letter in MMBENCH_CHOICES if row.get(letter)]
        choices, answer = [row[letter] for letter in letters], row.get("answer")
        if answer and answer not in letters:
            raise UserError(f"The answer of {where} is '{answer}'; it should be one of {', '.join(letters)}.")
        image = _decode(row["image"], images, where)
        meta = rest(row, "question", "image", "answer", *MMBENCH_CHOICES)
        for rotation in range(len(choices) if circular else 1):
            answers = [LETTERS[(letters.index(answer) - rotation) % len(choices)]] if answer else []
            moved = choices[rotation:] + choices[:rotation]
            id, common = f"{row['index']}/{rotation}", {"rotation": rotation}
            samples.append(sample(id, image, row["question"], answers, common | meta, moved))
    return dataset(samples, path)


def _read_tsv(path: Path) -> list[dict[str, str]]:
    read_text(path)  # raises where there is nothing to read
    columns = ("index", "question", "image", *MMBENCH_CHOICES, "hint", "answer", "category", "l2-category", "split")
    options = pa.csv.ConvertOptions(
        column_types={name: pa.string() for name in columns},
        strings_can_be_null=False,  # "None" and "N/A" are choices, not gaps
    )
    layout = pa.csv.ParseOptions(delimiter="\t", newlines_in_values=True)
    try:
        blocks = pa.csv.ReadOptions(block_size=2**26)  # a row must fit into one, image and all
        table = pa.csv.read_csv(path, blocks, layout, options)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"'{path}' is not a whole TSV file ({str(error).splitlines()[0]}).") from error
    for name in ("index", "question", "image", "A", "B"):
        if name not in table.column_names:
            raise UserError(f"'{path}' has no column '{name}'; its columns are {', '.join(table.column_names)}.")
    return table.to_pylist()


def _decode(image: str, images: dict[str, str], where: str) -> bytes:
    if len(image) <= _REFERENCE_LENGTH and image in images:
        image = images[image]
    try:
        return base64.b64decode(image, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"The image of {where} is not base64 ({error}).") from error
