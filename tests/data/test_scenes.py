import numpy as np
import pytest

from jtok.data import canvas, digit_scenes, digits, photos
from jtok.data.photographs import NAMES, PHOTOGRAPHS, SPLITS, photograph
from jtok.errors import UserError


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("build", [digit_scenes, photos])
def test_an_example_depends_on_split_seed_and_index_alone(build):
    first, again, other = build("train", seed=3), build("train", seed=3), build("train", seed=4)
    for index in (999_999, 0, 5):
        assert equal(first[index], again[index])
        assert not np.array_equal(first[index]["image"], other[index]["image"])
    assert not np.array_equal(first[0]["image"], build("test", seed=3)[0]["image"])
    assert (len(first), len(build("validation")), len(build("test", length=7))) == (1_000_000, 2000, 7)


@pytest.mark.parametrize("cut", digits.CUTS)
def test_no_digit_is_in_two_splits(cut):
    parts = [digits.split_indices(split, cut) for split in SPLITS]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1797))  # each digit once
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        assert abs(len(part) / 1797 - share) < 0.01


def test_the_stratified_cut_has_every_class_in_proportion_and_the_contiguous_one_keeps_the_order():
    labels = digits.labels()
    whole = np.bincount(labels) / len(labels)
    for split in SPLITS:
        part = digits.split_indices(split, "stratified")
        assert np.abs(np.bincount(labels[part]) / len(part) - whole).max() < 0.01
    bounds = [digits.split_indices(split, "contiguous")[[0, -1]] for split in SPLITS]
    assert bounds[0][1] < bounds[1][0] and bounds[1][1] < bounds[2][0]


def test_all_ink_of_a_split_comes_from_its_own_digits(monkeypatch):
    """With every digit of the other splits blotted out, the scenes of a split stay as they are."""
    before = [digit_scenes("test")[index] for index in range(40)]
    loaded = digits.sklearn.datasets.load_digits()
    others = np.setdiff1d(np.arange(1797), digits.split_indices("test", "stratified"))
    loaded.data[others] = 16
    monkeypatch.setattr(digits.sklearn.datasets, "load_digits", lambda: loaded)
    digits.sprites.cache_clear()
    try:
        assert all(equal(a, digit_scenes("test")[index]) for index, a in enumerate(before))
    finally:
        digits.sprites.cache_clear()


@pytest.mark.parametrize("size", [64, 96])
def test_label_box_and_mask_agree_with_the_picture(size):
    dataset = digit_scenes("test", size=size)
    members = digits.split_indices("test", "stratified")
    shares = []
    for index in range(300):
        scene = dataset[index]
        image, mask, box = scene["image"], scene["mask"], scene["box"]
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert mask.shape == (size, size) and mask.dtype == bool and box.dtype == np.float32
        assert scene["label"] == digits.labels()[members[index % len(members)]] and scene["label"].dtype == np.int32
        rows, columns = np.nonzero(mask)
        assert np.array_equal(box, [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
        inside = image[mask].mean()
        rim = np.zeros_like(mask)
        rim[int(box[0]) : int(box[2]), int(box[1]) : int(box[3])] = True
        assert inside > 1.3 * image[rim & ~mask].mean()  # the strokes stand out from what is between them
        shares.append(mask.reshape(8, size // 8, 8, size // 8).any((1, 3)).mean())
    assert 0.10 < np.mean(shares) < 0.20 and max(shares) <= 0.25


def test_a_clear_spot_is_clear_of_the_box_by_two_pixels_or_more():
    for size, height, width in ((64, 10, 12), (96, 20, 9)):
        box = [20, 22, 41, 40]
        dice = canvas.Dice(size, height)
        for _ in range(8):
            spot = dice.clear_spot(size, height, width, box)
            if spot is not None:
                y, x = spot
                assert 0 <= y <= size - height and 0 <= x <= size - width
                assert y >= 41 + 2 or y + height <= 20 - 2 or x >= 40 + 2 or x + width <= 22 - 2


def test_the_longest_possible_scene_has_enough_draws(monkeypatch):
    monkeypatch.setattr(canvas.Dice, "clear_spot", exhausting_clear_spot)
    for index in range(20):
        digit_scenes("train")[index]


def exhausting_clear_spot(dice, side, height, width, box):
    for _ in range(8):
        dice.real(0, 1)
    return 0, 0


def test_photographs_are_in_one_split_each_and_need_no_download():
    assert len(set(NAMES)) == len(NAMES) == sum(map(len, PHOTOGRAPHS.values()))
    for name in NAMES:
        image = photograph(name)
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and min(image.shape[:2]) >= 300
        assert min(photograph(name, 100).shape[:2]) == 100


def test_photo_crops():
    dataset = photos("test", size=48)
    examples = [dataset[index] for index in range(16)]
    assert {NAMES[example["label"]] for example in examples} == set(PHOTOGRAPHS["test"])
    assert all(example["image"].shape == (48, 48, 3) and example["image"].dtype == np.uint8 for example in examples)
    assert len({example["image"].tobytes() for example in examples}) == 16


@pytest.mark.parametrize(
    "build, arguments, words",
    [
        (digit_scenes, {"split": "tests"}, "no split 'tests'"),
        (digit_scenes, {"split": "test", "cut": "random"}, "stratified, contiguous"),
        (digit_scenes, {"split": "test", "size": 16}, "at least 32 pixels, not 16"),
        (digit_scenes, {"split": "test", "length": 0}, "length >= 1"),
        (photos, {"split": "val"}, "no split 'val'"),
        (photos, {"split": "test", "size": 0}, "size, length and shorter >= 1"),
    ],
)
def test_bad_input(build, arguments, words):
    with pytest.raises(UserError, match=words):
        build(**arguments)
