"""Small grey faces, and images without one: the subset of "Labeled Faces in the Wild" inside scikit-image.

200 images of 25 x 25 pixels, 100 of them faces; its file lies in the installed package, nothing is downloaded. No
image is in two splits; whether a person is, the subset does not say.
"""

from __future__ import annotations

import dataclasses
import functools

import grain.python as grain
import numpy as np
import PIL.Image
import skimage.data

from jtok.data.photographs import LENGTHS, SPLITS, check_split
from jtok.errors import UserError

FACES = 100  # of the 200; they come first
PARTS = {"train": (0, 70), "validation": (70, 80), "test": (80, 100)}  # of the faces, and of the others


@functools.cache
def pictures() -> np.ndarray:
    """All of them: uint8 [200, 25, 25]."""
    return np.round(skimage.data.lfw_subset() * 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Faces:
    """A random-access source; image `i` depends on (seed, split, i) and on nothing else."""

    split: str
    size: int
    seed: int
    length: int
    others: bool

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        members = _members(self.split, self.others)
        which = members[int(index) % len(members)]
        image = pictures()[which]
        top, left, bottom, right = 0, 0, *image.shape
        if self.split == "train":  # another crop each time, mirrored half of the time
            rng = np.random.default_rng([self.seed, SPLITS.index(self.split), int(index)])
            side = int(rng.integers(21, 26))
            top, left = (int(rng.integers(n - side + 1)) for n in image.shape)
            bottom, right = top + side, left + side
            image = image[:, ::-1] if rng.random() < 0.5 else image
        cut = PIL.Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
        grey = np.asarray(cut.resize((self.size, self.size), PIL.Image.Resampling.BICUBIC))
        return {"image": np.repeat(grey[..., None], 3, -1), "label": np.int32(which < FACES)}


def faces(
    split: str, *, size: int = 32, seed: int = 0, length: int | None = None, others: bool = False
) -> grain.MapDataset:
    """Faces as a Grain data set of {"image": uint8 [size, size, 3], "label": int32, 1 for a face}.

    others: with the images without faces. length: 1,000,000 for train, whose crops vary, and as many as there are
    pictures otherwise. Raises UserError for an unknown split, a size under 8, or a length under 1.
    """
    check_split(split)
    length = length or (LENGTHS["train"] if split == "train" else len(_members(split, others)))
    if size < 8 or length < 1 or seed < 0:
        raise UserError(f"Faces need size >= 8, length >= 1 and seed >= 0, not {size}, {length} and {seed}.")
    return grain.MapDataset.source(Faces(split, size, seed, length, others))


def _members(split: str, others: bool) -> np.ndarray:
    part = np.arange(*PARTS[split])
    return np.stack([part, part + FACES], 1).reshape(-1) if others else part
