"""An image of any size as overlapping square tiles, and back with a cross-fade that leaves no seam."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Shaped

from jtok.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tiles of `tile` x `tile` pixels, row by row; neighbours share `overlap` pixels, at most half a tile.

    Beyond the image, the last row and column of tiles hold the image mirrored at its border. Raises UserError for an
    empty image and an overlap that does not fit.
    """

    height: int
    width: int
    tile: int
    overlap: int

    def __post_init__(self):
        if min(self.height, self.width) < 1:
            raise UserError(f"an image of {self.height} x {self.width} pixels is empty.")
        if self.tile < 1 or not 0 <= self.overlap <= self.tile // 2:
            raise UserError(f"tiles of {self.tile} pixels overlap by 0 to {self.tile // 2} pixels, not {self.overlap}.")

    @property
    def rows(self) -> int:
        return _tiles_along(self.height, self.tile, self.overlap)

    @property
    def columns(self) -> int:
        return _tiles_along(self.width, self.tile, self.overlap)

    @property
    def count(self) -> int:
        """Number of tiles T."""
        return self.rows * self.columns

    def cut(self, image: Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "T t t C"]:
        """The tiles of an image; raises UserError for an image of another size."""
        if image.shape[:2] != (self.height, self.width):
            raise UserError(f"the tiling is of {self.height} x {self.width} pixels, the image of {image.shape[:2]}.")
        rows = self._places(self.rows, self.height)[:, None, :, None]
        columns = self._places(self.columns, self.width)[None, :, None, :]
        return image[rows, columns].reshape(self.count, self.tile, self.tile, image.shape[2])

    def join(self, tiles: Float[np.ndarray, "T t t C"]) -> Float[np.ndarray, "H W C"]:
        """The image in float32; where tiles overlap, one fades linearly into the other.

        Summed in float64, where the fade of an overlap of 2^n pixels is exact: tiles that agree are returned exactly.
        """
        faded = np.asarray(tiles, np.float64) * self._fade()[..., None]
        grid = faded.reshape(self.rows, self.columns, self.tile, self.tile, -1).transpose(0, 2, 1, 3, 4)
        bands = _lay(grid, self.overlap)  # [H', columns, t, C]
        image = np.swapaxes(_lay(np.moveaxis(bands, 0, 2), self.overlap), 0, 1)
        return image[: self.height, : self.width].astype(np.float32)

    def weights(self) -> Float[np.ndarray, "T t t"]:
        """Share of each tile in the pixels of the image: sums to one in every pixel, and is zero beyond the border.

        With these, the squared error of the joined image is at most the weighted mean of that of its tiles.
        """
        down = np.arange(self.rows)[:, None] * self._stride + np.arange(self.tile) < self.height
        across = np.arange(self.columns)[:, None] * self._stride + np.arange(self.tile) < self.width
        inside = down[:, None, :, None] & across[None, :, None, :]
        return self._fade() * inside.reshape(self.count, self.tile, self.tile)

    def seam(self, error: Float[np.ndarray, "H W C"]) -> float:
        """Visibility of tile seams: mean absolute step of the joined image's error between neighbouring pixels where
        tiles meet (in their overlap and at its ends), divided by that elsewhere. 1 where no seam is visible; nan for a
        single tile and for a constant error."""
        steps = {"here": [], "elsewhere": []}
        for axis, tiles in ((0, self.rows), (1, self.columns)):
            step = np.abs(np.diff(error, axis=axis)).mean((1 - axis, 2))
            first = np.arange(1, tiles)[:, None] * self._stride - 1
            meets = np.isin(np.arange(len(step)), first + np.arange(self.overlap + 1))
            steps["here"].append(step[meets])
            steps["elsewhere"].append(step[~meets])
        here, elsewhere = (np.concatenate(parts) for parts in steps.values())
        return float(here.mean() / elsewhere.mean()) if len(here) and elsewhere.any() else float("nan")

    @property
    def _stride(self) -> int:
        return self.tile - self.overlap

    def _places(self, tiles: int, side: int) -> np.ndarray:
        """[tiles, t] pixels of the image along one side, mirrored beyond its end (the last pixel comes twice)."""
        place = (np.arange(tiles)[:, None] * self._stride + np.arange(self.tile)) % (2 * side)
        return np.minimum(place, 2 * side - 1 - place)

    def _fade(self) -> Float[np.ndarray, "T t t"]:
        down, across = (_ramps(n, self.tile, self.overlap) for n in (self.rows, self.columns))
        return (down[:, None, :, None] * across[None, :, None, :]).reshape(self.count, self.tile, self.tile)


def _tiles_along(side: int, tile: int, overlap: int) -> int:
    return max(1, -(-(side - overlap) // (tile - overlap)))


def _ramps(tiles: int, tile: int, overlap: int) -> Float[np.ndarray, "n t"]:
    """Weights along one side: one, and rising or falling where a neighbour is."""
    ramp = (np.arange(overlap) + 0.5) / max(overlap, 1)
    weights = np.ones((tiles, tile))
    weights[1:, :overlap] = ramp
    weights[:-1, tile - overlap :] = ramp[::-1]
    return weights


def _lay(strips: Float[np.ndarray, "n t *rest"], overlap: int) -> Float[np.ndarray, "m *rest"]:
    """Strips placed one after another along the first axis, and summed where they overlap."""
    n, tile = strips.shape[:2]
    stride = tile - overlap
    out = np.zeros((n + 1, stride, *strips.shape[2:]))
    out[:n] += strips[:, :stride]
    out[1:, :overlap] += strips[:, stride:]
    return out.reshape((n + 1) * stride, *strips.shape[2:])
