"""Studies of data that have no split called test."""

import numpy as np

from jtok.commands.options import shipped_config
from jtok.evaluation.sweeps.study import SceneReader
from jtok.evaluation.sweeps.sweep import Cell
from jtok.training.tasks.classify import Classify


class Folders(Classify):
    """Held-out images stand in `val` only, as ImageNet's do."""

    def dataset(self, split):
        if split != "validation":
            raise FileNotFoundError(split)
        scene = {"image": np.zeros((64, 64, 3), np.uint8), "label": np.int32(1)}
        return [scene] * 4


def test_pictures_and_measures_are_of_the_evaluation_split():
    config = shipped_config()
    config.data.eval_split = "validation"
    config.sweep = {"images": 3, "pictures": 2, "picture_keeps": (0.5,)}
    subject = SceneReader(Folders(config), {}, config)
    assert subject.images["image"].shape == (3, 64, 64, 3)
    assert subject.pictures([], [Cell("none", 1.0)]) == []
