"""Bad input that the core refuses in one sentence, before any weight is read."""

import json
import shutil

import numpy as np
import pytest

from jtok.errors import UserError
from jtok.methods.reduce import reduce
from jtok.models.vlm import asking
from jtok.models.vlm.conversation import Conversation
from jtok.models.vlm.load_vlm import vlm_config
from jtok.models.vlm.model import VLM
from jtok.models.vlm.processing import load_processor
from tests.models.processing import checkpoints

QUESTION = "What is written on the sign?"


@pytest.fixture(scope="module")
def described(directory, tmp_path_factory):
    """(a model without weights, its directory, which holds none)."""
    path = tmp_path_factory.mktemp("described")
    for file in directory[1].iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, path)
    return VLM(vlm_config(path), {}, processor=load_processor(path)), path


def read(model, question=QUESTION, images=(), max_new_tokens=8):
    """What is done before weights are read."""
    inputs = model.inputs(question, images or [checkpoints.picture(60, 60)])
    asking.rehearse(model, inputs, max_new_tokens)


def test_a_good_question_is_not_refused(described):
    read(described[0])


REFUSED = {
    "an image of one pixel": (lambda m: read(m, images=[np.zeros((1, 1, 3), np.uint8)]), "1 x 1.*at least 2"),
    "a side of 40,000 pixels": (lambda m: read(m, images=[np.zeros((400, 40_000), np.uint8)]), "40000.*at most 39999"),
    "a strip": (lambda m: read(m, images=[np.zeros((2, 402), np.uint8)]), "at most 200 times"),
    "pixels that are no bytes": (lambda m: read(m, images=[np.zeros((9, 9, 3))]), "uint8"),
    "more tokens than there are": (lambda m: reduce(m, "uniform-grid", tokens=17), "17 tokens.*16"),
    "no tokens": (lambda m: reduce(m, "uniform-grid", tokens=0), "0 tokens.*between 1 and"),
    "more placeholders than images": (lambda m: read(m, "<image> and <image>"), "2 image placeholders.*1 images"),
    "a prompt longer than the context": (lambda m: read(m, "sign " * 500), r"takes \d+ positions of the 512"),
    "an answer longer than the context": (lambda m: read(m, max_new_tokens=490), "shorter answer"),
    "an answer longer than max_new_tokens": (
        lambda m: Conversation(m, checkpoints.picture(9, 9), max_new_tokens=4).ask("?"),
        "raise max_new_tokens",
    ),
    "no image": (lambda m: m.generate(None, QUESTION), "no image to read"),
    "frames of two sizes": (
        lambda m: load_video(m, [checkpoints.picture(20, 20), checkpoints.picture(20, 30)]),
        "one size",
    ),
}


def load_video(model, frames):
    """A video for a family that takes them."""
    settings = model.processor.settings.__class__("llava_onevision", (0,) * 3, (1,) * 3, 1.0, 3, 14, side=56)
    return model.processor.__class__(settings, model.processor.tokenizer, model.processor.template).video(frames)


@pytest.mark.parametrize("case", REFUSED)
def test_one_sentence(described, case):
    call, sentence = REFUSED[case]
    with pytest.raises(UserError, match=sentence) as error:
        call(described[0])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_token_id": 9999, "image_token_index": 9999}, "image token has id 9999.*no such id"),
        ({"image_token_id": None, "image_token_index": None}, "names no image token"),
    ],
)
def test_an_unknown_image_token(described, tmp_path, change, sentence):
    for file in described[1].iterdir():
        shutil.copy(file, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    kept = {name: value for name, value in {**config, **change}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match=sentence):
        load_processor(tmp_path)


def test_renumbered_positions_are_not_known_before_reading(described):
    model, _ = described
    inputs = model.inputs(QUESTION, [checkpoints.picture(60, 60)])
    assert model.positions_left(inputs) < 512 - 16
    assert reduce(model, "uniform-grid", tokens=4, positions="renumber").positions_left(inputs) is None
