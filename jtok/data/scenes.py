"""Digit scenes: one whole handwritten digit somewhere on a cluttered canvas, with its label, box and stroke mask.

The digits are scikit-learn's 1,797 8x8 images (the test part of UCI "Optical Recognition of Handwritten Digits"); the
canvas is a dimmed crop of a photograph, littered with pieces of other digits and with small bright pieces of
photographs. The digit covers some 10-25% of an 8x8 grid of patches, and the litter has strokes of the same kind,
so that a model has to find the digit before it can read it, and a token reducer has to keep it.

Nothing crosses a split: digits, the pieces of digits and the photographs of a split belong to that split alone.
"""

import dataclasses
import functools

import grain.python as grain
import numpy as np
import PIL.Image
import scipy.ndimage
import sklearn.datasets
import sklearn.model_selection

from jtok.data import photographs
from jtok.errors import UserError

CUTS = ("stratified", "contiguous")
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}
SCALES = (22, 24, 26, 28, 30)  # side of the digit's 8x8 frame, in pixels of a 64-pixel canvas
POSES = ((0.0, 0.0), (-10.0, 0.0), (10.0, 0.0), (0.0, -0.18), (0.0, 0.18))  # (rotation in degrees, shear)
FRAGMENTS = 4
PATCHES = 4
_SPLIT_SEED = 20  # fixed: the split of the digits is part of the data set, not of a run
_DRAWS = 160  # more than one scene can use (at most 12 + 13 a patch + 18 a fragment)


@functools.cache
def split_indices(split: str, cut: str) -> np.ndarray:
    """Which of the 1,797 digits belong to `split`: sorted int64 [n].

    `stratified` cuts at random with equal class shares; `contiguous` cuts the order of the data set, which follows
    the writers, so that the digits of the test part are mostly by other hands.
    """
    photographs.check_split(split)
    if cut not in CUTS:
        raise UserError(f"There is no cut {cut!r} of the digits; the cuts are {', '.join(CUTS)}.")
    labels = sklearn.datasets.load_digits().target
    everything = np.arange(len(labels))
    if cut == "contiguous":
        first = round(SHARES["train"] * len(labels))
        last = round((1 - SHARES["test"]) * len(labels))
        return {"train": everything[:first], "validation": everything[first:last], "test": everything[last:]}[split]
    part = functools.partial(sklearn.model_selection.train_test_split, random_state=_SPLIT_SEED)
    rest, test = part(everything, test_size=SHARES["test"], stratify=labels)
    share = SHARES["validation"] / (1 - SHARES["test"])
    train, validation = part(rest, test_size=share, stratify=labels[rest])
    return np.sort({"train": train, "validation": validation, "test": test}[split])


def _resampler(side: int, degrees: float, shear: float) -> np.ndarray:
    """The linear map [64, side*side] from an 8x8 image to `side` pixels, turned and sheared about its centre."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1.0, 0.0], [shear, 1.0]]) * (8 / side)
    offset = 3.5 - matrix @ np.full(2, (side - 1) / 2)
    units = np.eye(64).reshape(64, 8, 8)
    warp = functools.partial(
        scipy.ndimage.affine_transform, matrix=matrix, offset=offset, output_shape=(side, side), order=3
    )
    return np.stack([warp(unit).ravel() for unit in units])


@functools.cache
def _sprites(split: str, cut: str, size: int) -> list[np.ndarray]:
    """Opacity of every digit of the split at every scale and pose: one float32 [n, side, side] per (scale, pose)."""
    digits = sklearn.datasets.load_digits().data[split_indices(split, cut)] / 16  # [n, 64]
    sprites = []
    for scale in SCALES:
        side = round(scale * size / 64)
        for pose in POSES:
            ink = (digits @ _resampler(side, *pose)).reshape(-1, side, side)
            sprites.append(np.clip((ink - 0.35) / 0.3, 0, 1).astype(np.float32))  # sharpens the blur of the 8x8 image
    return sprites


@functools.cache
def _photographs(split: str, size: int) -> list[np.ndarray]:
    """The photographs of the split, shrunk so that a canvas sees a good part of one: uint8 [3, h, w] each."""
    shrunk = []
    for name in photographs.PHOTOGRAPHS[split]:
        image = PIL.Image.fromarray(photographs.photograph(name))
        factor = 2.5 * size / min(image.size)
        image = image.resize([round(factor * side) for side in image.size], PIL.Image.Resampling.BOX)
        shrunk.append(np.ascontiguousarray(np.moveaxis(np.asarray(image), -1, 0)))
    return shrunk


class _Dice:
    """Uniform draws of one scene, taken from a generator all at once, which is far cheaper than one by one."""

    def __init__(self, *key: int):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        self._draws = iter(rng.random(_DRAWS).tolist())

    def real(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._draws)

    def whole(self, low: int, high: int) -> int:
        """An integer in [low, high)."""
        return int(self.real(low, high))

    def ink(self, darkest: float, brightest: float) -> np.ndarray:
        """A colour, float32 [3, 1, 1]: brightness between two bytes, each channel dimmed by up to 25%."""
        brightness = self.real(darkest, brightest)
        channels = [brightness * self.real(0.75, 1) for _ in range(3)]
        return np.array(channels, np.float32).reshape(3, 1, 1)

    def window(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        """A window of the last two axes of `image`; a view."""
        y = self.whole(0, image.shape[-2] - height + 1)
        x = self.whole(0, image.shape[-1] - width + 1)
        return image[..., y : y + height, x : x + width]

    def clear_spot(self, side: int, height: int, width: int, box: list[int]) -> tuple[int, int] | None:
        """A place (y, x) for a piece, clear of `box` by a margin, or None when a few tries find none."""
        margin = side // 32
        for _ in range(4):
            y, x = self.whole(0, side - height + 1), self.whole(0, side - width + 1)
            above_or_below = y >= box[2] + margin or y + height <= box[0] - margin
            if above_or_below or x >= box[3] + margin or x + width <= box[1] - margin:
                return y, x
        return None


def _paint(canvas: np.ndarray, opacity: np.ndarray, colour: np.ndarray, y: int, x: int) -> None:
    """Lays `colour` [3, 1, 1] over the canvas [3, H, W] where `opacity` [h, w] says so, from (y, x) on."""
    window = canvas[:, y : y + opacity.shape[0], x : x + opacity.shape[1]]
    window += opacity * (colour - window)


@dataclasses.dataclass(frozen=True)
class DigitScenes:
    """A random-access source of scenes; scene `i` depends on (seed, split, cut, i) and on nothing else."""

    split: str
    size: int
    cut: str
    seed: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        dice = _Dice(self.seed, photographs.SPLITS.index(self.split), CUTS.index(self.cut), int(index))
        members = split_indices(self.split, self.cut)
        digit = int(index) % len(members)  # every digit of the split comes equally often
        opacity = self._sprite(digit, dice)
        side = len(opacity)
        y, x = dice.whole(0, self.size - side + 1), dice.whole(0, self.size - side + 1)
        strokes = opacity > 0.5
        rows, columns = strokes.any(1).nonzero()[0], strokes.any(0).nonzero()[0]
        box = [int(y + rows[0]), int(x + columns[0]), int(y + rows[-1] + 1), int(x + columns[-1] + 1)]
        mask = np.zeros((self.size, self.size), bool)
        mask[y : y + side, x : x + side] = strokes

        canvas = self._background(dice)
        self._add_patches(canvas, box, dice)
        self._add_fragments(canvas, digit, box, dice)
        _paint(canvas, opacity, dice.ink(210, 255), y, x)
        image = np.ascontiguousarray(np.moveaxis(canvas.astype(np.uint8), 0, -1))
        return {"image": image, "label": _labels()[members[digit]], "box": np.array(box, np.float32), "mask": mask}

    def _sprite(self, digit: int, dice: _Dice) -> np.ndarray:
        sprites = _sprites(self.split, self.cut, self.size)
        return sprites[dice.whole(0, len(sprites))][digit]

    def _photo_window(self, height: int, width: int, dice: _Dice) -> np.ndarray:
        images = _photographs(self.split, self.size)
        return dice.window(images[dice.whole(0, len(images))], height, width)

    def _background(self, dice: _Dice) -> np.ndarray:
        """A dimmed crop of a photograph, mirrored half of the time: float32 [3, size, size]."""
        crop = self._photo_window(self.size, self.size, dice)
        crop = crop[:, :, ::-1] if dice.whole(0, 2) else crop
        return crop * np.float32(dice.real(0.3, 0.45))

    def _add_patches(self, canvas: np.ndarray, box: list[int], dice: _Dice) -> None:
        """Small pieces of photographs, brighter than the background."""
        for _ in range(PATCHES):
            height, width = dice.whole(6, 14) * self.size // 64, dice.whole(6, 14) * self.size // 64
            spot = dice.clear_spot(self.size, height, width, box)
            if spot is not None:
                y, x = spot
                canvas[:, y : y + height, x : x + width] = self._photo_window(height, width, dice) * np.float32(0.8)

    def _add_fragments(self, canvas: np.ndarray, digit: int, box: list[int], dice: _Dice) -> None:
        """Pieces of other digits: at most 45% of the height and 75% of the width, so never a whole one."""
        count = len(split_indices(self.split, self.cut))
        for _ in range(FRAGMENTS):
            sprite = self._sprite((digit + dice.whole(1, count)) % count, dice)
            height, width = round(len(sprite) * dice.real(0.3, 0.45)), round(len(sprite) * dice.real(0.45, 0.75))
            spot = dice.clear_spot(self.size, height, width, box)
            if spot is not None:
                _paint(canvas, dice.window(sprite, height, width), dice.ink(100, 200), *spot)


@functools.cache
def _labels() -> np.ndarray:
    """The labels of the 1,797 digits: int32 [1797]."""
    return sklearn.datasets.load_digits().target.astype(np.int32)


def digit_scenes(
    split: str, *, size: int = 64, cut: str = "stratified", seed: int = 0, length: int | None = None
) -> grain.MapDataset:
    """Digit scenes as a Grain data set of {"image", "label", "box", "mask"}.

    image: uint8 [size, size, 3]. label: int32 scalar, 0-9. box: float32 [y0, x0, y1, x1], in pixels, end exclusive,
    tight around the mask. mask: bool [size, size], the strokes of the digit.
    `seed` draws other scenes of the same digits; `length` is 1,000,000 for train and 2,000 otherwise.
    Raises UserError for an unknown split or cut, a size under 32, or a length under 1.
    """
    split_indices(split, cut)  # raises on an unknown name
    if size < 32:
        raise UserError(f"A digit scene needs a size of at least 32 pixels, not {size}.")
    length = photographs.LENGTHS[split] if length is None else length
    if length < 1 or seed < 0:
        raise UserError(f"Digit scenes need length >= 1 and seed >= 0, not length={length} and seed={seed}.")
    return grain.MapDataset.source(DigitScenes(split, size, cut, seed, length))
