"""The photographs that ship inside scikit-image and scikit-learn, and a data set of crops of them.

Only images that lie in the installed packages themselves are named here, so that nothing is ever downloaded.
No photograph is in two splits.
"""

import dataclasses
import functools

import grain.python as grain
import numpy as np
import PIL.Image
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
NAMES = tuple(name for split in SPLITS for name in PHOTOGRAPHS[split])
LENGTHS = {"train": 1_000_000, "validation": 2000, "test": 2000}  # of the data sets drawn from embedded images


def check_split(split: str) -> None:
    """Raises UserError unless `split` is one of train, validation, test."""
    if split not in SPLITS:
        raise UserError(f"There is no split {split!r}; the splits are {', '.join(SPLITS)}.")


@functools.cache
def photograph(name: str, shorter: int | None = None) -> np.ndarray:
    """One embedded photograph: uint8 [H, W, 3]; a grey one is repeated over the channels.

    Whole, or shrunk (never enlarged) until its shorter side has `shorter` pixels.
    """
    if name in ("china", "flower"):
        image = sklearn.datasets.load_sample_image(f"{name}.jpg")
    else:
        image = getattr(skimage.data, name)()
        image = image[0] if isinstance(image, tuple) else image  # the stereo pair comes with a disparity map
    image = image if image.ndim == 3 else skimage.color.gray2rgb(image)
    if shorter is not None and shorter < min(image.shape[:2]):
        picture = PIL.Image.fromarray(image)
        sides = [round(side * shorter / min(picture.size)) for side in picture.size]
        image = np.asarray(picture.resize(sides, PIL.Image.Resampling.BOX))
    image = np.ascontiguousarray(image)
    image.flags.writeable = False  # the cache hands the same array to everybody
    return image


@dataclasses.dataclass(frozen=True)
class PhotoCrops:
    """A random-access source of square crops; crop `i` depends on (seed, split, i) and on nothing else."""

    split: str
    size: int
    seed: int
    length: int
    shorter: int
    vary: bool

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), int(index)])
        names = PHOTOGRAPHS[self.split]
        name = names[int(index) % len(names)]  # every photograph comes equally often
        image = photograph(name, self.shorter)
        smallest = min(self.size, *image.shape[:2])
        side = round(smallest * (min(image.shape[:2]) / smallest) ** rng.random())  # log-uniform
        y, x = rng.integers(image.shape[0] - side + 1), rng.integers(image.shape[1] - side + 1)
        crop = PIL.Image.fromarray(image[y : y + side, x : x + side])
        crop = np.asarray(crop.resize((self.size, self.size), PIL.Image.Resampling.BICUBIC))
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
        crop = _varied(crop, rng) if self.vary else crop
        return {"image": np.ascontiguousarray(crop), "label": np.int32(NAMES.index(name))}


def _varied(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turned by a multiple of 90 degrees, with the colours in another order and of another strength, or inverted: few
    photographs hold few colours."""
    crop = np.rot90(crop, rng.integers(4))[..., rng.permutation(3)].astype(np.float32)
    grey = crop.mean(-1, keepdims=True)
    low, contrast = rng.uniform(-32, 32), rng.uniform(0.6, 1.2)
    crop = (grey + (crop - grey) * rng.uniform(0.3, 1.5) - 128) * contrast + 128 + low
    crop = 255 - crop if rng.random() < 0.3 else crop
    return np.clip(np.round(crop), 0, 255).astype(np.uint8)


def photos(
    split: str,
    *,
    size: int = 64,
    seed: int = 0,
    length: int | None = None,
    shorter: int | None = None,
    vary: bool = False,
) -> grain.MapDataset:
    """Square crops of the embedded photographs as a Grain data set of {"image", "label"}.

    image: uint8 [size, size, 3], a window of the photograph (shrunk until its shorter side has `shorter` pixels, by
    default 4 `size`) from `size` pixels to its whole shorter side, resized, mirrored half of the time. label: int32
    scalar, the photograph (its place in `NAMES`). `seed` draws other crops; `length` is 1,000,000 for train and 2,000
    otherwise. vary: training crops are also rotated and recoloured.
    Raises UserError for an unknown split, or a size, length or shorter side under 1.
    """
    check_split(split)
    length = LENGTHS[split] if length is None else length
    shorter = 4 * size if shorter is None else shorter
    if min(size, length, shorter) < 1 or seed < 0:
        raise UserError(
            f"Photos need size, length and shorter >= 1 and seed >= 0, not {size}, {length}, {shorter} and {seed}."
        )
    return grain.MapDataset.source(PhotoCrops(split, size, seed, length, shorter, vary and split == "train"))
