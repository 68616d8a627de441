"""Faces come out of the installed package, in splits that share no picture, as uint8 of the size asked for."""

from __future__ import annotations

import numpy as np
import pytest

from jtok.data import make_dataset
from jtok.data.faces import PARTS, pictures
from jtok.errors import UserError


@pytest.mark.parametrize("split", PARTS)
def test_images(split):
    data = make_dataset("faces", split, size=32)
    example = data[3]
    assert example["image"].shape == (32, 32, 3) and example["image"].dtype == np.uint8 and example["label"] == 1
    assert np.ptp(example["image"]) > 50
    np.testing.assert_array_equal(example["image"], make_dataset("faces", split, size=32)[3]["image"])


def test_train_varies_and_held_out_pictures_are_whole():
    train, test = make_dataset("faces", "train", size=25), make_dataset("faces", "test", size=25)
    assert len(train) == 1_000_000 and len(test) == 20
    assert (train[0]["image"] != train[70]["image"]).any()  # the same face, another crop
    np.testing.assert_array_equal(test[0]["image"][..., 0], pictures()[80])
    both = make_dataset("faces", "test", size=25, others=True)
    assert len(both) == 40 and {int(both[i]["label"]) for i in range(4)} == {0, 1}
    assert sorted(i for first, last in PARTS.values() for i in range(first, last)) == list(range(100))


def test_bad_options_are_refused():
    with pytest.raises(UserError, match="There is no split"):
        make_dataset("faces", "val")
    with pytest.raises(UserError, match="Faces need size >= 8"):
        make_dataset("faces", "test", size=4)
