"""What synthetic scenes are made with: one scene's dice, dimmed photographs to paint on, and the brush."""

import functools

import numpy as np
import PIL.Image

from jtok.data import photographs


class Dice:
    """Uniform draws of one scene, taken from a generator all at once, which is far cheaper than drawing one by one.

    key: the numbers that the scene depends on. draws: more than one scene can use.
    `rng` is their generator, for arrays of draws.
    """

    def __init__(self, *key: int, draws: int = 160):
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        self._draws = iter(self.rng.random(draws).tolist())

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

    def clear_spot(self, side: int, height: int, width: int, *boxes: list[int]) -> tuple[int, int] | None:
        """A place (y, x) for a piece, clear of every box by a margin, or None when a few tries find none."""
        margin = side // 32
        for _ in range(4):
            y, x = self.whole(0, side - height + 1), self.whole(0, side - width + 1)
            if all(_apart(y, x, height, width, box, margin) for box in boxes):
                return y, x
        return None


def _apart(y: int, x: int, height: int, width: int, box: list[int], margin: int) -> bool:
    above_or_below = y >= box[2] + margin or y + height <= box[0] - margin
    return above_or_below or x >= box[3] + margin or x + width <= box[1] - margin


def paint(canvas: np.ndarray, opacity: np.ndarray, colour: np.ndarray, y: int, x: int) -> None:
    """Lays `colour` [3, 1, 1] over the canvas [3, H, W] where `opacity` [h, w] says so, from (y, x) on."""
    window = canvas[:, y : y + opacity.shape[0], x : x + opacity.shape[1]]
    window += opacity * (colour - window)


@functools.cache
def _shrunk(split: str, size: int) -> list[np.ndarray]:
    """The photographs of the split, shrunk so that a canvas sees a good part of one: uint8 [3, h, w] each."""
    shrunk = []
    for name in photographs.PHOTOGRAPHS[split]:
        image = PIL.Image.fromarray(photographs.photograph(name))
        factor = 2.5 * size / min(image.size)
        image = image.resize([round(factor * side) for side in image.size], PIL.Image.Resampling.BOX)
        shrunk.append(np.ascontiguousarray(np.moveaxis(np.asarray(image), -1, 0)))
    return shrunk


def photo_window(split: str, size: int, height: int, width: int, dice: Dice) -> np.ndarray:
    """A window of a photograph of the split, as a canvas of `size` sees it: uint8 [3, height, width]; a view."""
    images = _shrunk(split, size)
    return dice.window(images[dice.whole(0, len(images))], height, width)


def background(split: str, size: int, dice: Dice) -> np.ndarray:
    """A dimmed crop of a photograph, mirrored half of the time: float32 [3, size, size]."""
    crop = photo_window(split, size, size, size, dice)
    crop = crop[:, :, ::-1] if dice.whole(0, 2) else crop
    return crop * np.float32(dice.real(0.3, 0.45))


def image_of(canvas: np.ndarray) -> np.ndarray:
    """The finished image: uint8 [H, W, 3] from a canvas float32 [3, H, W]."""
    return np.ascontiguousarray(np.moveaxis(canvas.astype(np.uint8), 0, -1))
