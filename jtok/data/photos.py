"""The photographs that ship inside scikit-image and scikit-learn, and a data set of crops of them.

Only images that lie in the installed packages themselves are named here, so that nothing is ever downloaded.
No photograph is in two splits.
"""

import functools

import numpy as np
import skimage.color
import skimage.data
import sklearn.datasets

from jtok.errors import UserError

PHOTOGRAPHS = {
    "train": (
        "astronaut", "brick", "camera", "cell", "china", "coffee", "coins", "gravel", "hubble_deep_field",
        "immunohistochemistry", "moon", "retina",
    ),
    "validation": ("chelsea", "clock"),
    "test": ("flower", "grass", "rocket", "stereo_motorcycle"),
}  # fmt: skip
SPLITS = tuple(PHOTOGRAPHS)


def check_split(split: str) -> None:
    """Raises UserError unless `split` is one of train, validation, test."""
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; the splits are {', '.join(SPLITS)}.")


@functools.cache
def photograph(name: str) -> np.ndarray:
    """One embedded photograph, whole: uint8 [H, W, 3]; a grey one is repeated over the channels."""
    if name in ("china", "flower"):
        image = sklearn.datasets.load_sample_image(f"{name}.jpg")
    else:
        image = getattr(skimage.data, name)()
        image = image[0] if isinstance(image, tuple) else image  # the stereo pair comes with a disparity map
    image = image if image.ndim == 3 else skimage.color.gray2rgb(image)
    image = np.ascontiguousarray(image)
    image.flags.writeable = False  # the cache hands the same array to everybody
    return image
