"""From a checkpoint directory, an image and a question to an answer."""

import json

import numpy as np
import pytest
import torch

import jtok
from jtok.errors import UserError
from tests.models import language
from tests.models.processing import checkpoints

pytestmark = pytest.mark.usefixtures("highest_precision")
QUESTION = "What is written on the sign?"


def test_the_answer_is_that_of_transformers(directory):
    reference, path = directory
    model = jtok.load(path)
    image = checkpoints.picture(70, 90)
    prompt = model.processor.prompt(QUESTION, [image])
    with torch.no_grad():
        out = reference.generate(**language.reference(prompt), max_new_tokens=12, do_sample=False)
    expected = model.processor.tokenizer.decode(out[0, len(prompt.ids) :].tolist()).strip()
    assert len(expected) > 5
    assert model.generate(image, QUESTION, tokens=12) == expected
    pieces = list(jtok.reduce(model, "uniform-grid", tokens=4).stream(image, QUESTION, tokens=12))
    assert len(pieces) >= 2 and "".join(pieces).strip() != expected


def test_what_cannot_answer_is_refused_before_weights_are_read(directory, tmp_path):
    _, path = directory
    for file in path.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_text(file.read_text())
    with pytest.raises(UserError, match="holds no safetensors file"):
        jtok.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, sentence in (
        ({"model_type": "blip"}, "type 'blip'.*llava"),
        ({"vision_feature_layer": [-2, -5]}, "one layer"),
        ({"vision_feature_select_strategy": "full"}, "strategy 'default'"),
        ({"text_config": {**config["text_config"], "model_type": "gpt2"}}, "'gpt2'.*llama"),
        ({"text_config": {**config["text_config"], "hidden_act": "relu"}}, "'relu'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=sentence):
            jtok.load(tmp_path)
    with pytest.raises(UserError, match="vanish|pixels"):
        jtok.load(path).generate(np.zeros((1, 1, 3), np.uint8), QUESTION)
