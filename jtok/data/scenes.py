"""Digit scenes: one whole handwritten digit somewhere on a cluttered canvas, with its label, box and stroke mask.

The digits are scikit-learn's (see `jtok.data.digits`); the canvas is a dimmed crop of a photograph, littered with
pieces of other digits and with small bright pieces of photographs. The digit covers some 10-25% of an 8x8 grid of
patches, and the litter has strokes of the same kind, so that a model has to find the digit before it can read it, and
a token reducer has to keep it.

Nothing crosses a split: digits, the pieces of digits and the photographs of a split belong to that split alone.
"""

import dataclasses

import grain.python as grain
import numpy as np

from jtok.data import digits, photographs
from jtok.data.canvas import Dice, background, image_of, paint, photo_window
from jtok.errors import UserError

SCALES = (22, 24, 26, 28, 30)  # side of the digit's 8x8 frame, in pixels of a 64-pixel canvas
FRAGMENTS = 4
PATCHES = 4


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
        # At most 12 draws, 13 a patch and 18 a fragment.
        dice = Dice(self.seed, photographs.SPLITS.index(self.split), digits.CUTS.index(self.cut), int(index))
        members = digits.split_indices(self.split, self.cut)
        digit = int(index) % len(members)  # every digit of the split comes equally often
        opacity = self._sprite(digit, dice)
        side = len(opacity)
        y, x = dice.whole(0, self.size - side + 1), dice.whole(0, self.size - side + 1)
        strokes = opacity > 0.5
        rows, columns = strokes.any(1).nonzero()[0], strokes.any(0).nonzero()[0]
        box = [int(y + rows[0]), int(x + columns[0]), int(y + rows[-1] + 1), int(x + columns[-1] + 1)]
        mask = np.zeros((self.size, self.size), bool)
        mask[y : y + side, x : x + side] = strokes

        canvas = background(self.split, self.size, dice)
        self._add_patches(canvas, box, dice)
        self._add_fragments(canvas, digit, box, dice)
        paint(canvas, opacity, dice.ink(210, 255), y, x)
        label = digits.labels()[members[digit]]
        return {"image": image_of(canvas), "label": label, "box": np.array(box, np.float32), "mask": mask}

    def _sprite(self, digit: int, dice: Dice) -> np.ndarray:
        sprites = digits.sprites(self.split, self.cut, tuple(round(scale * self.size / 64) for scale in SCALES))
        return sprites[dice.whole(0, len(sprites))][digit]

    def _add_patches(self, canvas: np.ndarray, box: list[int], dice: Dice) -> None:
        """Small pieces of photographs, brighter than the background."""
        for _ in range(PATCHES):
            height, width = dice.whole(6, 14) * self.size // 64, dice.whole(6, 14) * self.size // 64
            spot = dice.clear_spot(self.size, height, width, box)
            if spot is not None:
                y, x = spot
                piece = photo_window(self.split, self.size, height, width, dice)
                canvas[:, y : y + height, x : x + width] = piece * np.float32(0.8)

    def _add_fragments(self, canvas: np.ndarray, digit: int, box: list[int], dice: Dice) -> None:
        """Pieces of other digits: at most 45% of the height and 75% of the width, so never a whole one."""
        count = len(digits.split_indices(self.split, self.cut))
        for _ in range(FRAGMENTS):
            sprite = self._sprite((digit + dice.whole(1, count)) % count, dice)
            height, width = round(len(sprite) * dice.real(0.3, 0.45)), round(len(sprite) * dice.real(0.45, 0.75))
            spot = dice.clear_spot(self.size, height, width, box)
            if spot is not None:
                paint(canvas, dice.window(sprite, height, width), dice.ink(100, 200), *spot)


def digit_scenes(
    split: str, *, size: int = 64, cut: str = "stratified", seed: int = 0, length: int | None = None
) -> grain.MapDataset:
    """Digit scenes as a Grain data set of {"image", "label", "box", "mask"}.

    image: uint8 [size, size, 3]. label: int32 scalar, 0-9. box: float32 [y0, x0, y1, x1], in pixels, end exclusive,
    tight around the mask. mask: bool [size, size], the strokes of the digit.
    `seed` draws other scenes of the same digits; `length` is 1,000,000 for train and 2,000 otherwise.
    Raises UserError for an unknown split or cut, a size under 32, or a length under 1.
    """
    digits.split_indices(split, cut)  # raises on an unknown name
    if size < 32:
        raise UserError(f"A digit scene needs a size of at least 32 pixels, not {size}.")
    length = photographs.LENGTHS[split] if length is None else length
    if length < 1 or seed < 0:
        raise UserError(f"Digit scenes need length >= 1 and seed >= 0, not length={length} and seed={seed}.")
    return grain.MapDataset.source(DigitScenes(split, size, cut, seed, length))
