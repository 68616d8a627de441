"""Finding the files of a split, with the same layouts for every format."""

import pathlib

from jtok.data.photographs import check_split
from jtok.errors import UserError

FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


def existing_directory(path: str | pathlib.Path) -> pathlib.Path:
    """`path` as a Path. Raises UserError when there is no directory there, or nothing in it."""
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"There is no data directory at '{path}'.")
    if not path.is_dir():
        raise UserError(f"The data path '{path}' is a file; it should be the directory that holds the data.")
    if not any(path.iterdir()):
        raise UserError(f"The data directory '{path}' is empty.")
    return path


def split_directory(path: str | pathlib.Path, split: str) -> pathlib.Path | None:
    """The folder of `split` (train; validation, val or valid; test) inside `path`, or None.

    Raises UserError when `path` is not a directory with something in it.
    """
    check_split(split)
    path = existing_directory(path)
    return next((path / name for name in FOLDERS[split] if (path / name).is_dir()), None)


def split_files(path: str | pathlib.Path, split: str, suffix: str) -> list[pathlib.Path]:
    """The files of a split, sorted: `path/train/*suffix`, or `path/train*suffix` (as in train-00000-of-00004.parquet).

    Raises UserError for a missing or empty directory, or when there are none.
    """
    folder = split_directory(path, split)
    patterns = [f"*{suffix}"] if folder else [f"{name}[-_.]*{suffix}" for name in FOLDERS[split]]
    patterns += [] if folder else [f"{name}{suffix}" for name in FOLDERS[split]]
    where = folder or pathlib.Path(path)
    files = sorted({file for pattern in patterns for file in where.glob(pattern) if file.is_file()})
    if not files:
        wanted = f"'{where}/*{suffix}'" if folder else f"'{path}/{split}/*{suffix}' or '{path}/{split}-*{suffix}'"
        raise UserError(f"There are no {split} files in '{path}': nothing matches {wanted}.")
    return files
