"""Parquet files as the Hugging Face hub stores image sets: an image column {bytes, path} and a label column.

Parquet is read a row group at a time, so a shuffled pass over a large set reads a whole group for one image; the
last few groups are kept in memory, which makes sets of up to some thousand images cheap. Turn a larger one into
ArrayRecord once, with `jtok.data.write_arrayrecord`.
"""

import bisect
import functools
import itertools
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet

from jtok.data.files import split_files
from jtok.data.images import Encoded, UnreadableImage
from jtok.errors import UserError

GROUPS_IN_MEMORY = 16


class ParquetSource:
    """Random access to the rows of `path/<split>/*.parquet` or `path/<split>-*.parquet`.

    image: the image column, a struct with a field `bytes`, or plain binary. label: the column of integer labels;
    their names are taken from the Hugging Face schema where it has them.
    Raises UserError for a missing or empty directory, no such files, no rows, a missing column, one of another type,
    or a file that is not Parquet.
    """

    def __init__(self, path: str | pathlib.Path, split: str, *, image: str = "image", label: str = "label"):
        self.image, self.label = image, label
        self.groups: list[tuple[str, int]] = []
        rows = []
        for file in split_files(path, split, ".parquet"):
            parquet = _open(str(file))
            _check_columns(str(file), parquet.schema_arrow, image, label)
            self.classes = _class_names(parquet.schema_arrow, label)
            self.groups += [(str(file), group) for group in range(parquet.num_row_groups)]
            rows += [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        self._ends = list(itertools.accumulate(rows))
        if not len(self):
            raise UserError(f"The Parquet files of '{path}' hold no {split} rows.")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Encoded:
        place = bisect.bisect_right(self._ends, index)
        file, group = self.groups[place]
        row = index - (self._ends[place - 1] if place else 0)
        name = f"row {row} of row group {group} of {file}"
        try:
            table = _row_group(file, group, self.image, self.label)
        except (OSError, pa.ArrowException) as error:
            raise UnreadableImage(name, error) from error
        image, label = table[self.image][row].as_py(), table[self.label][row].as_py()
        data = image.get("bytes") if isinstance(image, dict) else image
        if data is None or label is None:
            raise UnreadableImage(name, "no image bytes" if data is None else "no label")
        return Encoded(name, data, label)


def _open(file: str) -> pa.parquet.ParquetFile:
    try:
        return pa.parquet.ParquetFile(file, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"'{file}' is not a whole Parquet file ({str(error).splitlines()[0]}).") from error


@functools.lru_cache(maxsize=GROUPS_IN_MEMORY)
def _row_group(file: str, group: int, *columns: str) -> pa.Table:
    return _open(file).read_row_group(group, columns=list(columns))


def _check_columns(file: str, schema: pa.Schema, image: str, label: str) -> None:
    for column in (image, label):
        if column not in schema.names:
            raise UserError(f"'{file}' has no column '{column}'; its columns are {', '.join(schema.names)}.")
    kind = schema.field(image).type
    binary = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(binary) or pa.types.is_large_binary(binary)):
        raise UserError(f"The column '{image}' of '{file}' is {kind}; it should be binary, or a struct with 'bytes'.")
    if not pa.types.is_integer(schema.field(label).type):
        raise UserError(f"The column '{label}' of '{file}' is {schema.field(label).type}; labels should be integers.")


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The names of the labels, which the hub's own writer leaves in the metadata of the schema."""
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return tuple(features.get(label, {}).get("names", ()))
