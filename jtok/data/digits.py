"""scikit-learn's handwritten digits as ink: which belong to which split, and how opaque each is at a given size.

These are the 1,797 8x8 images of the test part of UCI "Optical Recognition of Handwritten Digits". No digit is in two
splits.
"""

import functools

import numpy as np
import scipy.ndimage
import sklearn.datasets
import sklearn.model_selection

from jtok.data import photographs
from jtok.errors import UserError

CUTS = ("stratified", "contiguous")
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
POSES = ((0.0, 0.0), (-10.0, 0.0), (10.0, 0.0), (0.0, -0.18), (0.0, 0.18))  # (rotation in degrees, shear)
_SPLIT_SEED = 20  # fixed: the split of the digits is part of the data set, not of a run


@functools.cache
def split_indices(split: str, cut: str) -> np.ndarray:
    """Which of the 1,797 digits belong to `split`: sorted int64 [n].

    `stratified` cuts at random with equal class shares; `contiguous` cuts the order of the data set, which follows
    the writers, so that the digits of the test part are mostly by other hands.
    Raises UserError for an unknown split or cut.
    """
    photographs.check_split(split)
    if cut not in CUTS:
        raise UserError(f"There is no cut {cut!r} of the digits; the cuts are {', '.join(CUTS)}.")
    target = sklearn.datasets.load_digits().target
    everything = np.arange(len(target))
    if cut == "contiguous":
        first = round(SHARES["train"] * len(target))
        last = round((1 - SHARES["test"]) * len(target))
        return {"train": everything[:first], "validation": everything[first:last], "test": everything[last:]}[split]
    part = functools.partial(sklearn.model_selection.train_test_split, random_state=_SPLIT_SEED)
    rest, test = part(everything, test_size=SHARES["test"], stratify=target)
    share = SHARES["validation"] / (1 - SHARES["test"])
    train, validation = part(rest, test_size=share, stratify=target[rest])
    return np.sort({"train": train, "validation": validation, "test": test}[split])


@functools.cache
def labels() -> np.ndarray:
    """The labels of the 1,797 digits: int32 [1797]."""
    return sklearn.datasets.load_digits().target.astype(np.int32)


def _resampler(side: int, degrees: float, shear: float) -> np.ndarray:
    """The linear map [64, side*side] from an 8x8 image to `side` pixels, rotated and sheared about its centre."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[1.0, 0.0], [shear, 1.0]]) * (8 / side)
    offset = 3.5 - matrix @ np.full(2, (side - 1) / 2)
    units = np.eye(64).reshape(64, 8, 8)
    warp = functools.partial(
        scipy.ndimage.affine_transform, matrix=matrix, offset=offset, output_shape=(side, side), order=3
    )
    return np.stack([warp(unit).ravel() for unit in units])


@functools.cache
def sprites(split: str, cut: str, sides: tuple[int, ...]) -> list[np.ndarray]:
    """Opacity of every digit of the split at every side of its frame and pose, in 0..1.

    One float32 [n, side, side] per (side, pose), poses varying fastest; a row is a digit of `split_indices`.
    """
    digits = sklearn.datasets.load_digits().data[split_indices(split, cut)] / 16  # [n, 64]
    inks = []
    for side in sides:
        for pose in POSES:
            ink = (digits @ _resampler(side, *pose)).reshape(-1, side, side)
            inks.append(np.clip((ink - 0.35) / 0.3, 0, 1).astype(np.float32))  # sharpens the blur of the 8x8 image
    return inks
