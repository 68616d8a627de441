"""What every reader of a benchmark shares: samples with lazily decoded images, and files read with clear complaints."""

import io
import json
import pathlib
from collections.abc import Iterable
from typing import Any

import grain.python as grain
import PIL.Image

from jtok.errors import UserError

KEYS = ("id", "image", "question", "answers", "choices", "meta")


def sample(
    id: Any,
    image: pathlib.Path | bytes | None,
    question: str,
    answers: list[str],
    meta: dict[str, Any],
    choices: Iterable[str] = (),
) -> dict[str, Any]:
    """One question as the readers keep it; other fields of the file go to `meta`."""
    return dict(zip(KEYS, (str(id), image, question, answers, list(choices), meta), strict=True))


def load_image(image: pathlib.Path | bytes | None, name: str) -> PIL.Image.Image | None:
    """The RGB image in a file or in encoded bytes; None stays None. Raises UserError when it cannot be read."""
    if image is None:
        return None
    try:
        with PIL.Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"The image of question {name}, '{image}', is missing.") from error
    # Pillow's decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        where = "its row" if isinstance(image, bytes) else f"'{image}'"
        raise UserError(f"The image of question {name} cannot be decoded from {where} ({error}).") from error


class Samples:
    """Random access to questions; the image of one is read and decoded when the question is asked for."""

    def __init__(self, samples: list[dict[str, Any]]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.samples[int(index)]
        return row | {"image": load_image(row["image"], row["id"])}


def dataset(samples: list[dict[str, Any]], path: str | pathlib.Path) -> grain.MapDataset:
    """The samples read from `path` as a Grain data set. Raises UserError when there are none."""
    if not samples:
        raise UserError(f"'{path}' holds no questions.")
    return grain.MapDataset.source(Samples(samples))


def read_text(path: str | pathlib.Path) -> str:
    """The text of a file. Raises UserError when it is missing or not UTF-8."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"There is no file '{path}'.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read as a text file ({error}).") from error


def read_json(path: str | pathlib.Path, kind: type = dict) -> Any:
    """The contents of a JSON file. Raises UserError when it is missing, no JSON, or not a `kind` on the outside."""
    try:
        contents = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}' is not a whole JSON file ({error}).") from error
    return of_kind(contents, kind, f"'{path}'")


def read_json_lines(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; empty lines are skipped. Raises UserError as `read_json`."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            try:
                rows.append(of_kind(json.loads(line), dict, f"line {number} of '{path}'"))
            except json.JSONDecodeError as error:
                raise UserError(f"Line {number} of '{path}' is not JSON ({error}).") from error
    return rows


def of_kind(value: Any, kind: type, where: str) -> Any:
    """`value`. Raises UserError unless it is a `kind`."""
    if not isinstance(value, kind):
        raise UserError(f"{where[0].upper()}{where[1:]} should be a {kind.__name__}, not a {type(value).__name__}.")
    return value


def field(row: dict[str, Any], name: str, where: str) -> Any:
    """A field of a record. Raises UserError, naming the record and the fields it has, when it is not there."""
    if name not in row:
        raise UserError(
            f"{where[0].upper()}{where[1:]} has no '{name}'; it has {', '.join(map(str, row)) or 'nothing'}."
        )
    return row[name]


def rest(row: dict[str, Any], *taken: str) -> dict[str, Any]:
    """The fields of a record that are not among the taken ones."""
    return {name: value for name, value in row.items() if name not in taken}
