"""`jtok ask` end to end: an answer, a figure of the kept tokens, and one sentence for bad input."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import jtok
from jtok import cli
from jtok.models.vlm import asking, shipped
from tests.models.processing import checkpoints

QUESTION = "What is written on the sign?"


@pytest.fixture
def files(directory, tmp_path):
    """Paths by name: a working checkpoint, broken ones, and good and bad images."""
    _, model = directory
    Image.fromarray(checkpoints.picture(70, 90)).save(tmp_path / "picture.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "point.png")
    Image.new("1", (40_000, 300)).save(tmp_path / "strip.png")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("sharded", "blip", "siglip"):
        (tmp_path / name).mkdir()
    for file in model.iterdir():
        if file.suffix == ".json":
            shutil.copy(file, tmp_path / "sharded")
            shutil.copy(file, tmp_path / "blip")
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((tmp_path / "blip" / "config.json").read_text())
    (tmp_path / "blip" / "config.json").write_text(json.dumps({**config, "model_type": "blip"}))
    checkpoints.write(tmp_path / "siglip", "paligemma")
    safetensors.numpy.save_file({"x": np.zeros(1, np.float32)}, tmp_path / "siglip" / "model.safetensors")
    return {"tmp": tmp_path, "model": model}


def ask(capsys, files, *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr); {model} and {tmp} in the arguments are filled in."""
    code = cli.main(["ask", *(argument.format(**files) for argument in argv)])
    return code, *capsys.readouterr()


GOOD = ("--model={model}", "--image={tmp}/picture.png", "--max_new_tokens=8")


def test_the_answer_is_that_of_the_library_and_the_picture_shows_what_was_kept(capsys, files):
    argv = (*GOOD, "--method", "uniform-grid", "--tokens", "4", "--show={tmp}/show.png", QUESTION)
    code, out, err = ask(capsys, files, *argv)
    model = jtok.reduce(jtok.load(files["model"]), "uniform-grid", tokens=4)
    assert code == 0
    assert out.strip() == model.generate(files["tmp"] / "picture.png", QUESTION, tokens=8) != ""
    assert err == f"wrote {files['tmp']}/show.png\n"
    with Image.open(files["tmp"] / "show.png") as figure:
        shown = np.asarray(figure.convert("RGB")).astype(int)
    assert shown.shape[1] > 4 * 256, "the image, and tokens and scores of the sites"
    grey = (abs(shown - shown.mean(-1, keepdims=True)).max(-1) < 2) & (shown.max(-1) < 200) & (shown.min(-1) > 60)
    assert grey.sum() > 256 * 256, "dropped patches are grey"


BAD = {
    "no question": ([*GOOD], ["question", "quotes"]),
    "an empty question": ([*GOOD, " "], ["question"]),
    "a question without quotes": ([*GOOD, "What", "is", "this?"], ["'is'", "quotes"]),
    "no image": (["--model={model}", QUESTION], ["--image"]),
    "a temperature below zero": ([*GOOD, "--temperature=-1", QUESTION], ["-1.0"]),
    "no directory": (["--model={tmp}/none", *GOOD[1:], QUESTION], ["no directory", "none"]),
    "no checkpoint": (["--model={tmp}", *GOOD[1:], QUESTION], ["config.json"]),
    "another type of model": (["--model={tmp}/blip", *GOOD[1:], QUESTION], ["'blip'", "llava"]),
    "a missing shard": (["--model={tmp}/sharded", *GOOD[1:], QUESTION], ["model-00001-of-00002"]),
    "an image that is not there": (["--model={model}", "--image={tmp}/none.png", QUESTION], ["none.png"]),
    "an image that is none": (["--model={model}", "--image={tmp}/text.png", QUESTION], ["text.png", "PNG"]),
    "an image of one pixel": (["--model={model}", "--image={tmp}/point.png", QUESTION], ["1 x 1", "at least 2"]),
    "an image too long": (["--model={model}", "--image={tmp}/strip.png", QUESTION], ["40000", "at most 39999"]),
    "more tokens than there are": ([*GOOD, "--method=random", "--tokens=17", QUESTION], ["17", "16"]),
    "no tokens": ([*GOOD, "--method=random", "--tokens=0", QUESTION], ["0 tokens", "between 1 and"]),
    "an unknown method": ([*GOOD, "--method=divprun", QUESTION], ["divprun", "divprune"]),
    "an unknown option": ([*GOOD, "--method=random", "--option=stagez=2", QUESTION], ["stagez", "stages"]),
    "no class token": (
        ["--model={tmp}/siglip", *GOOD[1:], "--method=fastervlm", QUESTION],
        ["fastervlm", "no class token", "divprune"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence_before_weights_are_read(name, capsys, files, monkeypatch):
    monkeypatch.setattr(asking, "load_vlm", lambda *args, **kwargs: pytest.fail("weights are read"))
    argv, words = BAD[name]
    code, out, err = ask(capsys, files, *argv)
    assert code == 2 and out == ""
    assert err.startswith("jtok ask: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err


def test_without_a_model_of_its_own_it_says_so(capsys, files, monkeypatch):
    monkeypatch.setattr(shipped, "ASSET", "assets/none")
    code, _, err = ask(capsys, files, *GOOD[1:], QUESTION)
    assert code == 2 and "--model=DIR" in err


@pytest.mark.slow
def test_a_directory_can_be_measured_too(capsys, files):
    argv = ["--methods=uniform-grid", "--tokens=4", "--repeats=1", "--answer=2", "--json"]
    assert cli.main(["bench", "vlm", f"--model={files['model']}", *argv]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["prompt"]["visual_tokens"] == 16
    assert [row["visual_tokens"] for row in result["rows"]] == [16, 4]
