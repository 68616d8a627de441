"""Opening, checking, converting, resizing and normalising images with Pillow, as the reference's processors do."""

from __future__ import annotations

import logging
import os

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jtok.errors import UserError

log = logging.getLogger(__name__)

#: Limits of an image: pixels of the shorter and of the longer side, and how many times longer the latter may be. The
#: last is Qwen2-VL's own limit; in the other models a longer strip would be resized to gigabytes before it is cropped.
MIN_SIDE, MAX_SIDE, MAX_RATIO = 2, 39_999, 200

ImageLike = Image.Image | np.ndarray | str | os.PathLike


def open_image(image: ImageLike) -> Image.Image:
    """The image as 8-bit RGB; a file is rotated upright by its EXIF tag, an array or Pillow image is taken as is.

    image: a Pillow image, a file, or an array [H,W], [H,W,1], [H,W,3] or [H,W,4] of uint8 or uint16. Conversions that
    lose something are logged. Raises UserError for what cannot be read and for sizes beyond the limits above.
    """
    if isinstance(image, str | os.PathLike):
        return _open_file(image)
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"an image is a Pillow image, a uint8 array or a file, not {type(image).__name__}.")
    check_size(image.height, image.width)
    return _to_rgb(image)


def check_size(height: int, width: int) -> None:
    """Raises UserError for a size in pixels beyond the limits, naming the limit."""
    short, long = sorted((height, width))
    if short < MIN_SIDE or long > MAX_SIDE:
        raise UserError(
            f"the image is {height} x {width} pixels: each side must have at least {MIN_SIDE} and at most {MAX_SIDE}."
        )
    if long > MAX_RATIO * short:
        raise UserError(
            f"the image is {height} x {width} pixels: the longer side may be at most {MAX_RATIO} times the shorter."
        )


def resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """Resized to (rows, columns) with one of Pillow's filters, by its number."""
    return image.resize((int(size[1]), int(size[0])), Image.Resampling(resample))


def resize_shortest(image: Image.Image, side: int, resample: int) -> Image.Image:
    """Resized so that the shorter side has `side` pixels; the longer one is rounded down."""
    short, long = sorted(image.size)
    long = int(side * long / short)
    return resize(image, (long, side) if image.width <= image.height else (side, long), resample)


def center_crop(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The middle of an image, surrounded by zeros where the image is smaller."""
    lack = [max(want - have, 0) for want, have in zip(size, pixels.shape, strict=False)]
    # an odd leftover goes before when padding and after when cropping
    pixels = np.pad(pixels, [*(((n + 1) // 2, n // 2) for n in lack), (0, 0)])
    top, left = (pixels.shape[0] - size[0]) // 2, (pixels.shape[1] - size[1]) // 2
    return pixels[top : top + size[0], left : left + size[1]]


def pad_to_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of a square of one colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def normalize(
    pixels: UInt8[np.ndarray, "... H W 3"], scale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[np.ndarray, "... 3 H W"]:
    """(pixel * scale - mean) / std in float32, channels first; the product in float64, as in the reference."""
    scaled = (pixels.astype(np.float64) * scale).astype(np.float32)
    normal = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(np.moveaxis(normal, -1, -3))


def _open_file(path: str | os.PathLike) -> Image.Image:
    try:
        with Image.open(path) as image:
            check_size(image.height, image.width)  # the header is enough: nothing has been decoded yet
            return _to_rgb(ImageOps.exif_transpose(image))
    except UserError as error:
        raise UserError(f"'{path}': {error}") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"'{path}' has more than {most:,} pixels, the most that is decoded: make it smaller.") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read as an image ({error}): give a PNG, JPEG or the like.") from None


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise UserError(f"an image array is [rows, columns] with 1, 3 or 4 channels last, not of shape {array.shape}.")
    if array.dtype not in (np.uint8, np.uint16):
        raise UserError(f"an image array holds uint8 values (0 to 255) or uint16, not {array.dtype}: convert it first.")
    check_size(*array.shape[:2])
    return Image.fromarray(_to_eight_bits(array) if array.dtype == np.uint16 else np.ascontiguousarray(array))


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        image.load()
        return image
    if mode == "F":
        raise UserError("an image of floating-point pixels has no known range: convert it to 8 bits first.")
    if mode.startswith("I"):
        image = Image.fromarray(_to_eight_bits(np.asarray(image)))
    elif mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        log.info("an image of mode %s is converted to RGB: its transparency is dropped", mode)
    else:
        log.info("an image of mode %s is converted to RGB", mode)
    return image.convert("RGB")


def _to_eight_bits(array: np.ndarray) -> np.ndarray:
    log.info("a 16-bit image is converted to 8 bits: its values are divided by 257 and rounded")
    return np.round(np.clip(array, 0, 65535) / 257).astype(np.uint8)
