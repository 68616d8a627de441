"""Any image file as 8-bit RGB, with a sentence for everything that was converted on the way."""

from __future__ import annotations

import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from jtok.errors import UserError

#: What Pillow raises on files that it cannot read or convert.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def read_picture(path: str | os.PathLike) -> tuple[UInt8[np.ndarray, "H W 3"], list[str]]:
    """(the image, what was done to it, a short phrase each). A camera's orientation tag is followed.

    Raises UserError for a file that is not there, unreadable, animated or of several pages, or of floats.
    """
    try:
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's JPEG with a preview after the image
                raise UserError(f"'{path}' holds {frames} frames or pages: give an image of one.")
            if image.mode == "F":
                raise UserError(f"'{path}' has floating-point pixels: save it with 8 bits a channel first.")
            deep = image.mode.startswith("I") or any(";16" in str(tile) for tile in image.tile)
            image.load()
            return _eight_bit_rgb(image, deep)
    except UserError:
        raise
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot read the image '{path}' ({reason}): give a PNG, JPEG or WebP file.") from error


def _eight_bit_rgb(image: Image.Image, deep: bool) -> tuple[np.ndarray, list[str]]:
    said = []
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
        said.append("turned as its orientation tag says")
    if deep:
        said.append("16 bits a channel read as 8")
    if image.mode.startswith("I"):
        image = Image.fromarray(np.clip(np.round(np.asarray(image, np.float64) / 257), 0, 255).astype(np.uint8))
    if image.mode in ("P", "PA"):
        said.append("palette converted to RGB")
    elif image.mode not in ("RGB", "RGBA", "RGBX", "RGBa", "L", "LA", "La", "1"):
        said.append(f"{image.mode} converted to RGB without a colour profile")
    if image.has_transparency_data:
        said.append("alpha channel composited on white")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB")), said
