"""The standard ImageNet transforms, on uint8 images, by Pillow."""

import math

import grain.python as grain
import numpy as np
import PIL.Image

BICUBIC = PIL.Image.Resampling.BICUBIC


def centre_crop(image: np.ndarray, size: int, share: float = 0.875) -> np.ndarray:
    """The evaluation transform: the shorter side resized to size/share, then the centre cut out.

    image: uint8 [H, W, 3]. Returns uint8 [size, size, 3]. `share` is 0.875 by custom (224 of 256); 1 keeps the whole
    shorter side. Bicubic with antialiasing.
    """
    picture = PIL.Image.fromarray(image)
    scale = round(size / share) / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    left, top = (width - size) // 2, (height - size) // 2
    picture = picture.resize((width, height), BICUBIC).crop((left, top, left + size, top + size))
    return np.asarray(picture)


def random_crop_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A window (top, left, height, width) of 8-100% of the area and an aspect ratio of 3/4 to 4/3.

    "Going Deeper with Convolutions", arXiv 1409.4842, section 6: area uniform, the logarithm of the ratio uniform
    (as its implementations have it); after ten draws that do not fit, the largest centred window within the ratios.
    """
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The training transform: a random window resized to a square, mirrored half of the time.

    image: uint8 [H, W, 3]. Returns uint8 [size, size, 3]. Bicubic with antialiasing.
    """
    top, left, h, w = random_crop_box(*image.shape[:2], rng)
    box = (left, top, left + w, top + h)
    cropped = np.asarray(PIL.Image.fromarray(image).resize((size, size), BICUBIC, box=box))
    return np.ascontiguousarray(cropped[:, ::-1]) if rng.random() < 0.5 else cropped


class Evaluation(grain.MapTransform):
    """`centre_crop` of the "image" of each example."""

    def __init__(self, size: int):
        self.size = size

    def map(self, example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return example | {"image": centre_crop(example["image"], self.size)}


class Training(grain.RandomMapTransform):
    """`random_resized_crop` of the "image" of each example; another crop each epoch."""

    def __init__(self, size: int):
        self.size = size

    def random_map(self, example: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return example | {"image": random_resized_crop(example["image"], self.size, rng)}
