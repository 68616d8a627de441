"""WebDataset shards: plain tar files where the members of one example share a name up to its first dot.

An example is an image (`.jpg`, `.jpeg`, `.png`, `.webp`) and its label: `.cls`, a decimal number, or `.json`, an
object with an integer "label". The headers of every shard are read once, so that any example can be read independently.
"""

import json
import pathlib
import tarfile
from typing import NamedTuple

from jtok.data.files import split_files
from jtok.data.images import Encoded, UnreadableImage
from jtok.errors import UserError

IMAGES = ("jpg", "jpeg", "png", "webp")


class _Place(NamedTuple):
    """Where the image of an example lies in its shard, and the label."""

    shard: str
    key: str
    offset: int
    size: int
    label: int


class WebDatasetSource:
    """Random access to the examples of `path/<split>/*.tar` or `path/<split>-*.tar`, in the order of the shards.

    Raises UserError for a missing or empty directory, no such files, no images, a shard that is compressed, cut short
    or no tar file, and an image without a label.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, path: str | pathlib.Path, split: str):
        self._places = [place for shard in split_files(path, split, ".tar") for place in _index(str(shard))]
        if not self._places:
            raise UserError(f"The {split} shards of '{path}' hold no images ({', '.join(IMAGES)}).")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Encoded:
        place = self._places[index]
        name = f"{place.key} in {place.shard}"
        try:
            with open(place.shard, "rb") as shard:
                shard.seek(place.offset)
                return Encoded(name, shard.read(place.size), place.label)
        except OSError as error:
            raise UnreadableImage(name, error) from error


def _index(shard: str) -> list[_Place]:
    """The examples of one shard in order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                if not member.isreg():
                    continue
                if extension.lower() in IMAGES:
                    images[key] = member
                elif extension in ("cls", "json"):
                    label = _label(tar.extractfile(member).read(), extension)
                    if label is not None:
                        labels[key] = label
    except tarfile.TarError as error:
        raise UserError(f"'{shard}' is not a whole, uncompressed tar file ({error}).") from error
    for key in images:
        if key not in labels:
            raise UserError(f"The image {key} in '{shard}' has no label: a .cls or .json member with a whole number.")
    return [_Place(shard, key, image.offset_data, image.size, labels[key]) for key, image in images.items()]


def _label(text: bytes, extension: str) -> int | None:
    """The label in a .cls or .json member, or None when there is none to be read."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    value = value.get("label") if extension == "json" and isinstance(value, dict) else value
    return value if isinstance(value, int) and not isinstance(value, bool) else None
