"""Images of any size survive tiling, and what differs from tile to tile fades instead of stepping."""

from __future__ import annotations

import numpy as np
import pytest

from jtok.errors import UserError
from jtok.tokenizers.tiling import Tiling

SIZES = [(1, 1), (1, 90), (33, 70), (32, 32), (31, 200), (64, 61), (5, 3), (100, 101)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0, 4, 16])
def test_tiles_that_agree_give_the_image_back(size, overlap):
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    tiling = Tiling(*size, 32, overlap)
    tiles = tiling.cut(image)
    assert tiles.shape == (tiling.rows * tiling.columns, 32, 32, 3)
    np.testing.assert_array_equal(tiling.join(tiles), image)


def test_any_overlap_gives_eight_bit_images_back():
    image = np.random.default_rng(1).integers(0, 256, (57, 83, 3), np.uint8)
    tiling = Tiling(57, 83, 16, 5)
    joined = tiling.join(tiling.cut(image.astype(np.float32) / 255))
    np.testing.assert_array_equal(np.round(joined * 255), image)


@pytest.mark.parametrize("overlap", [2, 4, 8])
def test_an_offset_of_each_tile_leaves_no_step(overlap):
    tiling = Tiling(120, 90, 32, overlap)
    rows, columns = np.divmod(np.arange(tiling.count), tiling.columns)
    offset = 1.0 * ((rows + columns) % 2)  # a chessboard: the largest difference between all neighbours
    joined = tiling.join(np.broadcast_to(offset[:, None, None, None], (tiling.count, 32, 32, 1)).copy())[..., 0]
    steps = max(np.abs(np.diff(joined, axis=axis)).max() for axis in (0, 1))
    assert 0 < steps <= 1 / overlap + 1e-6
    assert joined.min() == 0 and joined.max() == 1, "the middle of a tile is the tile's own"


@pytest.mark.parametrize("size", SIZES)
def test_weights_share_out_every_pixel_once(size):
    tiling = Tiling(*size, 32, 4)
    weights = tiling.weights()
    assert weights.sum() == pytest.approx(size[0] * size[1]) and (weights.sum((1, 2)) > 0).all()


def test_error_of_the_image_is_bounded_by_that_of_its_tiles():
    rng = np.random.default_rng(2)
    tiling = Tiling(77, 50, 16, 4)
    noise = rng.normal(size=(tiling.count, 16, 16, 3)).astype(np.float32)
    weights = tiling.weights()
    tiles = (np.square(noise).mean(-1) * weights).sum()
    assert np.square(tiling.join(noise)).mean() * 77 * 50 <= tiles


def test_beyond_the_border_is_the_mirror_image():
    image = np.arange(5, dtype=np.float32).reshape(1, 5, 1)
    tile = Tiling(1, 5, 8, 2).cut(image)[0]
    np.testing.assert_array_equal(tile[0, :, 0], [0, 1, 2, 3, 4, 4, 3, 2])
    np.testing.assert_array_equal(tile[7], tile[0])


def test_what_cannot_be_tiled_is_said():
    with pytest.raises(UserError, match="overlap by 0 to 16"):
        Tiling(50, 50, 32, 17)
    with pytest.raises(UserError, match="empty"):
        Tiling(0, 50, 32, 4)
    with pytest.raises(UserError, match="the image of"):
        Tiling(50, 50, 32, 4).cut(np.zeros((50, 51, 3)))


@pytest.mark.parametrize("overlap", [0, 4])
def test_a_seam_is_where_tiles_meet(overlap):
    tiling = Tiling(60, 72, 16, overlap)
    g = np.random.default_rng(0)
    noise = g.normal(size=(60, 72, 3))
    assert 0.9 < tiling.seam(noise) < 1.1
    shifts = np.broadcast_to(g.normal(size=(tiling.count, 1, 1, 3)), (tiling.count, 16, 16, 3))
    faint = 1e-3 * noise
    assert tiling.seam(tiling.join(shifts) + faint) > 20
    assert np.isnan(tiling.seam(np.zeros((60, 72, 3)))) and np.isnan(Tiling(9, 9, 16, 4).seam(noise[:9, :9]))
