"""Image folders: one sub-directory per class, as ImageNet is usually unpacked: `path/train/n01440764/10026.JPEG`."""

import pathlib

from jtok.data.files import FOLDERS, split_directory
from jtok.data.images import Encoded, UnreadableImage
from jtok.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class FolderSource:
    """Random access to the images under `path/<split>/<class>/`, at any depth below the class.

    Classes are numbered in the sorted order of the names of the class directories of all splits together, so that a
    split that lacks a class has the same labels; files follow in sorted order, hidden ones are passed over.
    Raises UserError for a missing or empty directory, or one without class directories or images.
    """

    def __init__(self, path: str | pathlib.Path, split: str):
        folder = split_directory(path, split)
        if folder is None:
            raise UserError(f"There is no '{split}' directory in '{path}'; images go to '{path}/{split}/<class>/'.")
        folders = [found for name in FOLDERS if (found := split_directory(path, name))]
        self.classes = tuple(sorted({name for folder in folders for name in _class_directories(folder)}))
        self.files = [
            (str(file), self.classes.index(name))
            for name in _class_directories(folder)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        ]
        if not self.files:
            raise UserError(f"There are no images in '{folder}'; they go to '{folder}/<class>/'.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Encoded:
        name, label = self.files[index]
        try:
            return Encoded(name, pathlib.Path(name).read_bytes(), label)
        except OSError as error:
            raise UnreadableImage(name, error) from error


def _class_directories(folder: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
