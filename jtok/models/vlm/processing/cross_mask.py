"""The images that each token may read, for decoders with cross-attention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from jtok.models.vlm.processing.layout import VisualInput


def cross_mask(
    slots: Sequence[int], images: Sequence[VisualInput], tiles: int, length: int
) -> Bool[np.ndarray, "L I T"]:
    """The tiles of each image that each of `length` tokens attends to.

    slots: where the images' ids are placed. A token reads the last image before it, and the images right before that
    one without a token in between; the first tokens of a prompt may read nothing.
    """
    mask = np.zeros((length, len(images), tiles), bool)
    end = length
    for index in reversed(range(len(images))):
        following = slots[index + 1] if index + 1 < len(slots) else length
        if following != slots[index] + 1:
            end = following
        mask[slots[index] : end, index, : images[index].real] = True
    return mask
