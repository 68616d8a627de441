"""Decoding encoded images, and what happens to those that cannot be decoded.

A random-access pipeline cannot leave a hole: the length must be known, every process must see the same global batches,
and a resumed run must see what an uninterrupted one would have seen. So a corrupt image is *replaced by the next
readable one* in the order of the source. That keeps all three, whatever the number of processes; the price is that the
neighbour of a corrupt image is seen twice an epoch. Where that matters (an evaluation), `readable_only` decodes
everything once beforehand and leaves the corrupt images out.
Either way each corrupt image is logged once, by name, with the running count, and is listed in `Images.skipped`.
(Worker processes keep separate counts.)
"""

import io
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import PIL.Image

from jtok.errors import UserError

log = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """One example as it is stored."""

    name: str  # names it to a person: a file, or a file and a place in it
    data: bytes  # the image file: JPEG, PNG, WebP, ... whatever Pillow reads
    label: int


class EncodedSource(Protocol):
    """What a file format has to offer: random access to examples as they are stored."""

    classes: tuple[str, ...]  # the name of each label; empty where the files do not say

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Encoded: ...


class UnreadableImage(Exception):
    """An example that cannot be read; `name` identifies it, the message gives the reason. `Images` skips it."""

    def __init__(self, name: str, reason: Any):
        super().__init__(f"{name}: {reason}")
        self.name = name


def decode(data: bytes, name: str) -> np.ndarray:
    """The image in an encoded file as uint8 [H, W, 3]; the orientation tag of a camera is ignored, as is usual.

    Raises UnreadableImage when Pillow cannot decode all of it.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    # Pillow's decoders raise nearly anything on damaged bytes: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        raise UnreadableImage(name, error) from error


class Images:
    """The decoded examples of a source: {"image": uint8 [H, W, 3], "label": int32}. H and W differ between images.

    `skipped` maps the index of each corrupt image met so far to its name.
    """

    def __init__(self, source: EncodedSource):
        self.source = source
        self.skipped: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        for step in range(len(self)):
            place = (int(index) + step) % len(self)
            if place not in self.skipped:
                example = self._try(place)
                if example is not None:
                    return example
        raise UserError(f"None of the {len(self)} images can be read (the first is {self.skipped[0]}).")

    def _try(self, place: int) -> dict[str, np.ndarray] | None:
        try:
            name, data, label = self.source[place]
            return {"image": decode(data, name), "label": np.int32(label)}
        except UnreadableImage as error:
            self.skipped[place] = error.name
            log.warning("Skipped a corrupt image (%d so far): %s", len(self.skipped), error)
            return None


def readable_only(images: Images) -> Sequence[dict[str, np.ndarray]]:
    """The images of a source that can be decoded, found by decoding each of them once now.

    Raises UserError when none can.
    """
    kept = [place for place in range(len(images)) if images._try(place) is not None]
    if not kept:
        raise UserError(f"None of the {len(images)} images can be read (the first is {images.skipped[0]}).")
    return Subset(images, kept)


class Subset:
    """Some elements of a random-access source, in the given order."""

    def __init__(self, source: Any, indices: Sequence[int]):
        self.source, self.indices = source, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[self.indices[index]]
