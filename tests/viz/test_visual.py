"""Pictures of visual tokens: what the tower saw, crop by crop, and what is left of it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
from PIL import Image

from jtok.evaluation.figures.visual import _picture, draw_reading
from jtok.models.vlm.families.qwen2_5_vl.processing import prepare
from jtok.models.vlm.processing import ImageSettings
from jtok.plan import Plan
from jtok.target import Target
from jtok.viz.paint import VEIL

SETTINGS = ImageSettings("llava", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 1 / 255, 3, 28, side=56)
RED, GREEN = (200, 10, 10), (10, 180, 20)


def normalised(colour):
    return (np.asarray(colour) / 255 - np.asarray(SETTINGS.mean)) / np.asarray(SETTINGS.std)


def test_every_crop_is_drawn_as_it_was_seen_and_what_no_token_holds_is_grey():
    pixels = np.stack([np.full((56, 56, 3), normalised(c)) for c in (RED, GREEN)])[None]
    config = SimpleNamespace(grid=(2, 2), target=lambda: Target(2, (2, 2), 8))
    model = SimpleNamespace(config=config, plan=Plan(), processor=SimpleNamespace(settings=SETTINGS))
    # the first crop keeps everything, of the second one patch is dropped and two share a token that is no longer there
    visual = SimpleNamespace(owner=np.array([[0, 1, 2, 3, 4, -1, 5, 5]]), mask=lambda: np.arange(6)[None] < 5)
    reading = SimpleNamespace(stages={}, sequence=SimpleNamespace(visual=visual))
    drawn = np.asarray(draw_reading(model, SimpleNamespace(pixels=pixels), reading)).reshape(-1, 3).astype(int)
    side = 256 // 56 * 56
    assert (drawn == RED).all(-1).sum() == 2 * side**2, "the image and all of its tokens"
    assert (drawn == GREEN).all(-1).sum() == side**2 + side**2 // 4, "the image and the one token that is left"
    grey = drawn[(np.ptp(drawn, -1) == 0) & (abs(drawn[:, 0] - VEIL) < 20)]
    assert len(grey) >= 3 * side**2 // 4


def test_patches_of_any_size_are_put_together_again():
    settings = dataclasses.replace(SETTINGS, family="qwen2_5_vl", patch=14, merge=2, temporal=2, pixels=(784, 10**6))
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    (visual,) = prepare([Image.fromarray(image)], settings)
    grid = np.zeros((3, 4, 4, visual.pixels.shape[-1]), np.float32)  # room for more rows and columns than there are
    grid[:2, :3] = visual.pixels.reshape(2, 3, 4, -1)
    seen, room, size = _picture(grid, (2, 3), settings)
    np.testing.assert_array_equal(seen, image)
    assert (room, size) == ((3, 4), (2, 3))
