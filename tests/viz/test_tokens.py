"""Token pictures against what they must show, on maps small enough to know every pixel."""

import numpy as np
import pytest
from PIL import Image

from jtok.errors import UserError
from jtok.viz import Outcome, draw_methods, draw_stages
from jtok.viz.paint import draw_box, enlarge, group_sizes, hues, paint_score, paint_tokens, to_pixels, tokens_in_box
from jtok.viz.tokens import short_site

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def quadrants(picture):
    """The patches of a 2x2 grid in raster order."""
    half = picture.shape[0] // 2
    return [picture[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]


def test_an_image_is_enlarged_by_a_whole_factor_without_smoothing():
    big = enlarge(NOISE, 200)
    assert big.shape == (192, 192, 3)
    np.testing.assert_array_equal(big[1::3, 1::3], NOISE)
    assert enlarge(np.zeros((500, 250, 3), np.uint8), 200).shape == (200, 100, 3)


@pytest.mark.parametrize("bad", [NOISE.astype(np.float32), NOISE[..., 0], NOISE[..., :2]])
def test_only_uint8_colour_images_are_drawn(bad):
    with pytest.raises(UserError, match=r"uint8 \[H,W,3\]"):
        enlarge(bad, 64)


@pytest.mark.parametrize("rows, columns, side", [(8, 8, 256), (27, 27, 384), (5, 7, 64)])
def test_every_patch_has_its_place_on_the_canvas(rows, columns, side):
    placed = to_pixels(np.arange(rows * columns), (rows, columns), (side, side))
    assert placed.shape == (side, side)
    assert placed[0, 0] == 0 and placed[0, -1] == columns - 1 and placed[-1, -1] == rows * columns - 1
    counts = np.bincount(placed.reshape(-1), minlength=rows * columns)
    height, width = side / rows, side / columns
    assert counts.min() >= int(height) * int(width) and counts.max() <= (int(height) + 1) * (int(width) + 1)


def test_group_sizes_count_patches_and_ignore_the_dropped():
    assert group_sizes(np.array([1, 2, 2, -1, 0]), 1).tolist() == [1, 2, 2, 0, 0]


def test_dropped_patches_lose_contrast_and_colour_and_kept_ones_stay():
    kept, dropped, *_ = quadrants(paint_tokens(NOISE, np.array([1, -1, 2, 3]), (2, 2), 1))
    np.testing.assert_array_equal(kept, quadrants(NOISE)[0])
    assert dropped.std() < 0.25 * kept.std()
    assert np.ptp(dropped, axis=-1).max() == 0


def test_a_dropped_patch_is_darker_than_a_kept_one_on_a_light_image():
    light = np.full((64, 64, 3), 230, np.uint8)
    kept, dropped, *_ = quadrants(paint_tokens(light, np.array([1, -1, 2, 3]), (2, 2), 1))
    assert dropped.max() < kept.min()


def test_a_group_is_outlined_where_owners_differ_and_only_there():
    image = np.full((64, 64, 3), 90, np.uint8)
    owner = np.array([1, 1, 2, 3])  # the upper two share a token
    out = paint_tokens(image, owner, (2, 2), 1)
    colour = hues(owner)[0]
    lower_rim = out[31, :]  # the last line of the group, above other owners
    assert (lower_rim == colour).all()
    assert not (out[16, 31:33] == colour).all(-1).any()  # inside the group, between its two patches
    np.testing.assert_array_equal(out[32:], image[32:])  # tokens of their own are left alone


def test_all_parts_of_a_scattered_token_look_alike_and_unlike_another_token():
    image = np.full((64, 64, 3), 90, np.uint8)
    first, second, third, fourth = quadrants(paint_tokens(image, np.array([5, 7, 7, 5]), (2, 2), 1))
    np.testing.assert_array_equal(first[16, 16], fourth[16, 16])
    np.testing.assert_array_equal(second[16, 16], third[16, 16])
    assert np.abs(first[16, 16].astype(int) - second[16, 16]).max() > 30


def test_scores_rise_from_violet_to_yellow_and_the_kept_are_outlined_in_white():
    image = np.full((64, 64, 3), 90, np.uint8)
    score = np.array([0.0, 1.0, 0.5, np.nan])
    low, high, middle, missing = quadrants(paint_score(image, score, np.array([-1, 1, -1, -1]), (2, 2), 1))
    brightness = [q[16, 16].astype(int).sum() for q in (low, middle, high)]
    assert brightness == sorted(brightness) and brightness[0] < brightness[2]
    assert (high[0] == 255).all() and (high[:, 0] == 255).all()
    assert not (low == 255).all(-1).any()
    assert np.ptp(missing, axis=-1).max() == 0


@pytest.mark.parametrize("score", [[1, 1, 1, 1], [np.nan] * 4, [-np.inf, 1, 2, np.inf], [-np.inf] * 4])
def test_odd_scores_are_drawn(score):
    out = paint_score(NOISE, np.array(score, float), np.array([1, 2, 3, -1]), (2, 2), 1)
    assert out.shape == NOISE.shape and out.dtype == np.uint8


def test_a_box_is_drawn_in_rows_and_columns_of_the_image():
    drawn = np.asarray(draw_box(np.zeros((128, 128, 3), np.uint8), np.array([8, 16, 24, 56]), (64, 64)))
    ys, xs = np.nonzero(drawn.any(-1))
    assert (ys.min(), xs.min(), ys.max(), xs.max()) == (15, 31, 48, 112)


def test_tokens_in_a_box_are_distinct_tokens_over_the_patches_it_touches():
    owner = np.array([1, 2, 2, 2, -1, 3, 4, 5, 6])
    assert tokens_in_box(owner, (3, 3), 1, np.array([0, 0, 16, 16]), (24, 24)) == (2, 4)
    assert tokens_in_box(owner, (3, 3), 1, np.array([8, 8, 16, 16]), (24, 24)) == (0, 1)


def test_stages_stand_in_one_row_with_a_score_panel_where_there_is_a_score():
    owner, box = np.arange(1, 65), np.array([8, 8, 32, 32])
    stages = [("tower.output", owner, None)] * 3
    plain = draw_stages(NOISE, stages, (8, 8), box=box)
    scored = draw_stages(NOISE, [*stages[:2], ("tower.output", owner, np.arange(64.0))], (8, 8), box=box)
    assert isinstance(plain, Image.Image) and plain.mode == "RGB"
    assert plain.height == scored.height >= 256
    assert 4 * 256 <= plain.width < 4 * 280
    assert scored.width - plain.width == 256 + 1 + 10  # one panel more, and the gap before it


def test_stages_of_a_fine_grid_are_drawn_larger():
    image = np.zeros((384, 384, 3), np.uint8)
    assert draw_stages(image, [("tower.output", np.arange(1, 730), None)], (27, 27)).height > 27 * 14


def test_a_map_that_does_not_fit_the_grid_is_refused():
    with pytest.raises(UserError, match="8x8 has 64 patches, but 49"):
        draw_stages(NOISE, [("tower.output", np.arange(49), None)], (8, 8))


def outcome(correct, grid=(8, 8)):
    return Outcome(np.arange(1, grid[0] * grid[1] + 1), grid, "7", correct)


def test_a_contact_sheet_frames_right_and_wrong_predictions():
    sheet = draw_methods([(NOISE, {"a": outcome(True), "b": outcome(False, (5, 5))})], labels=["7"])
    pixels = np.asarray(sheet).reshape(-1, 3)
    green, red = (0x11, 0x77, 0x33), (0xC0, 0x20, 0x3A)
    assert all((pixels == colour).all(-1).sum() > 4 * 4 * 100 for colour in (green, red))


def test_a_contact_sheet_has_a_row_an_image_and_a_column_a_method():
    one = draw_methods([(NOISE, {"a": outcome(None)})])
    two = draw_methods([(NOISE, {"a": outcome(None), "b": outcome(None)})] * 2)
    assert two.height - one.height >= 128
    assert two.width >= 3 * 128


def test_a_shrunk_image_is_shown_as_the_tower_saw_it():
    seen = np.full((40, 40, 3), (10, 200, 30), np.uint8)
    shown = Outcome(np.arange(1, 26), (5, 5), seen=seen)
    pixels = np.asarray(draw_methods([(NOISE, {"downsample-image": shown})])).reshape(-1, 3)
    assert (pixels == (10, 200, 30)).all(-1).sum() == 128 * 128


def test_rows_with_other_methods_or_too_few_boxes_are_refused():
    with pytest.raises(UserError, match="image 1 has outcomes of b"):
        draw_methods([(NOISE, {"a": outcome(None)}), (NOISE, {"b": outcome(None)})])
    with pytest.raises(UserError, match="0 boxes were given for 1 images"):
        draw_methods([(NOISE, {"a": outcome(None)})], boxes=[])


def test_sites_read_as_words():
    assert short_site("tower.block.3.after_attention") == "block 3, after attention"
    assert short_site("llm.layer.2.input") == "LLM layer 2, input"
    assert short_site("tower.output") == "tower.output"
