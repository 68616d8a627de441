"""Studies: splits with other names, progress, the order of pictures and measurements."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jtok.commands.options import shipped_config
from jtok.evaluation.sweeps.study import SceneReader, Study, progress
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


@pytest.mark.parametrize(
    ("done", "total", "seconds", "said"),
    [
        (1, 11, 0, "1 of 11 points"),
        (2, 11, 30, "2 of 11 points, about 4 min left"),
        (5, 11, 80, "5 of 11 points, about 2 min left"),
        (9, 10, 90, "9 of 10 points, less than a minute left"),
        (10, 10, 600, "10 of 10 points"),
    ],
)
def test_progress_says_the_minutes_that_the_points_left_will_take(done, total, seconds, said):
    assert progress(done, total, seconds) == said


class Counted:
    """A subject that notes what it was asked for, in order."""

    target = None

    def __init__(self):
        self.asked = []

    def measure(self, cell, single):
        self.asked.append((cell.method, single))
        return {
            "method": cell.method,
            "keep": cell.keep,
            "asked": "",
            "adaptive": False,
            "trained": False,
            "accuracy": 0.5,
            "gmacs": 1.0,
            "latency_ms_b8": {"median": 1.0, "p10": 1.0, "p90": 1.0},
        }

    def pictures(self, records, cells):
        self.asked.append(("pictures", len(records)))
        return [("what is left", Image.new("RGB", (2, 2)))]


@pytest.mark.parametrize(("single_keeps", "timed"), [((), False), ((0.5,), True)])
def test_batch_1_of_the_unreduced_model_is_timed_only_beside_others(tmp_path, single_keeps, timed):
    subject = Counted()
    config = ConfigDict({"sweep": {"methods": (), "keeps": (), "runs": {}, "batch": 8, "single_keeps": single_keeps}})
    Study(subject, config, tmp_path, "").run(say=lambda line: None)
    assert subject.asked == [("none", timed)]


def test_pictures_can_be_drawn_before_anything_is_measured(tmp_path):
    subject = Counted()
    config = ConfigDict({"sweep": {"methods": (), "keeps": (), "runs": {}, "batch": 8, "single_keeps": ()}})
    assert Study(subject, config, tmp_path, "").draw() == [tmp_path / "what_is_left.png"]
    assert Image.open(tmp_path / "what_is_left.png").size == (2, 2)
    assert subject.asked == [("pictures", 0)]
