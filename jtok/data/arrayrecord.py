"""ArrayRecord files of encoded images: the format with true random access, and so the one to train large sets from.

One record is one example, stored as the bytes of a safetensors file (self-describing, no code in it) with
  image: uint8 [n], the encoded image file (JPEG, PNG, ...);
  label: int64 scalar.
Other tensors are ignored. `write_arrayrecord` turns any other source into such a file:

    write_arrayrecord("imagenet/train-0.array_record", FolderSource("imagenet", "train"))
"""

import bisect
import itertools
import pathlib
from collections.abc import Iterable

import array_record.python.array_record_module as array_record
import grain.python as grain
import numpy as np
import safetensors
import safetensors.numpy

from jtok.data.files import split_files
from jtok.data.images import Encoded, UnreadableImage
from jtok.errors import UserError
from jtok.files import whole

SUFFIX = ".array_record"


class ArrayRecordSource:
    """Random access to the records of `path/<split>/*.array_record` or `path/<split>-*.array_record`.

    Raises UserError for a missing or empty directory, no such files, no records, or a file of another format.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, path: str | pathlib.Path, split: str):
        self.files = [str(file) for file in split_files(path, split, SUFFIX)]
        self._ends = list(itertools.accumulate(_count(file) for file in self.files))
        if not self._ends[-1]:
            raise UserError(f"The ArrayRecord files of '{path}' hold no {split} records.")
        self._records = grain.ArrayRecordDataSource(self.files)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Encoded:
        shard = bisect.bisect_right(self._ends, index)
        name = f"record {index - (self._ends[shard - 1] if shard else 0)} of {self.files[shard]}"
        try:
            record = safetensors.numpy.load(self._records[index])
            return Encoded(name, record["image"].tobytes(), int(record["label"]))
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise UnreadableImage(name, error) from error


def _count(file: str) -> int:
    """How many records one file holds. Raises UserError when it is not a whole ArrayRecord file."""
    try:
        reader = array_record.ArrayRecordReader(file)
        count = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"'{file}' is not a whole ArrayRecord file ({str(error).splitlines()[0]}).") from error
    return count


def write_arrayrecord(file: str | pathlib.Path, examples: Iterable[Encoded]) -> int:
    """Writes examples to one ArrayRecord file and returns how many; the file appears only when it is whole."""
    count = 0
    with whole(file) as draft:
        writer = array_record.ArrayRecordWriter(str(draft), "group_size:1")  # one record a chunk: cheap to read alone
        for example in examples:
            tensors = {"image": np.frombuffer(example.data, np.uint8), "label": np.array(example.label, np.int64)}
            writer.write(safetensors.numpy.save(tensors))
            count += 1
        writer.close()
    return count
