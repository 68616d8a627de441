"""Image folders: one sub-directory per class, as ImageNet is usually unpacked: `path/train/n01440764/10026.JPEG`."""

import pathlib

from jtok.data.files import split_directory
from jtok.data.images import Encoded, UnreadableImage
from jtok.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class FolderSource:
    """Random access to the images under `path/<split>/<class>/`, at any depth below the class.

    Classes are numbered in the sorted order of their names; files follow in sorted order. A class directory without
    images keeps its number. Raises UserError for a missing or empty directory, or one without class directories
    or images.
    """

    def __init__(self, path: str | pathlib.Path, split: str):
        folder = split_directory(path, split)
        if folder is None:
            raise UserError(f"There is no '{split}' directory in '{path}'; images go to '{path}/{split}/<class>/'.")
        self.classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
        if not self.classes:
            raise UserError(f"'{folder}' has no class directories; images go to '{folder}/<class>/'.")
        self.files = [
            (str(file), label)
            for label, name in enumerate(self.classes)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in SUFFIXES
        ]
        if not self.files:
            raise UserError(f"There are no images under the {len(self.classes)} class directories of '{folder}'.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Encoded:
        name, label = self.files[index]
        try:
            return Encoded(name, pathlib.Path(name).read_bytes(), label)
        except OSError as error:
            raise UnreadableImage(name, error) from error
