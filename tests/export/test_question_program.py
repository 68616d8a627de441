"""Vision-language models: a program reads prompts as the model does, and transformers loads what was trained here."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from jax import export

from jtok import cli
from jtok.data.question_text import decode_question
from jtok.data.questions import digit_questions
from jtok.errors import UserError
from jtok.export.question_program import check_llava, one_image_inputs, question_program
from jtok.methods.reduce import reduce
from jtok.models.vlm.model import load
from jtok.training.tasks.answer_questions import AnswerQuestions
from jtok.training.tasks.question_model import save_model
from tests.training.test_answer_questions import SIZE, tiny_config

pytestmark = pytest.mark.slow
TEXT = 32


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    task = AnswerQuestions(tiny_config())
    dice = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: a + 0.1 * dice.normal(size=a.shape).astype(np.float32), task.init(jax.random.key(0))
    )
    path = tmp_path_factory.mktemp("run") / "model"
    save_model(task, params, path)
    return path


@pytest.fixture(scope="module")
def asked(directory):
    """(model, inputs as it takes them, images, ids without the image, how many of them): three questions."""
    model = load(directory)
    data = digit_questions("test", size=SIZE, length=6)
    examples = [data[i] for i in (0, 1, 5)]
    prompts = [model.processor.prompt(decode_question(e["question"]), [e["image"]]) for e in examples]
    inputs = model.config.arrange(model.processor.batch(prompts), TEXT)
    texts = [[i for i in p.ids if i != model.config.image_token] for p in prompts]
    ids = np.zeros((len(texts), TEXT), np.int32)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    lengths = np.array([len(text) for text in texts], np.int32)
    return model, inputs, np.stack([e["image"] for e in examples]), ids, lengths


def test_prompts_are_laid_out_as_the_model_lays_them_out(asked):
    model, inputs, _, ids, lengths = asked
    before = int(inputs.places.before[0, 0])
    assert len(set(lengths)) > 1
    ours = one_image_inputs(jnp.asarray(inputs.pixels[:, 0]), ids, lengths, before, model.config.grid)
    real = np.asarray(inputs.valid)
    for field in ("pixels", "valid", "newline", "images"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(inputs, field), err_msg=field)
    for field in ("ids", "position"):  # values in padding do not matter
        np.testing.assert_array_equal(getattr(ours, field)[real], getattr(inputs, field)[real], err_msg=field)
    for field in ("position", "before", "inside", "start", "width"):
        np.testing.assert_array_equal(getattr(ours.places, field), getattr(inputs.places, field), err_msg=field)
    count = ours.question.shape[1]
    meant = np.asarray(ours.question_valid)
    np.testing.assert_array_equal(meant, inputs.question_valid[:, :count])
    np.testing.assert_array_equal(ours.question[meant], inputs.question[:, :count][meant])
    assert not inputs.question_valid[:, count:].any()
    assert ours.visible == inputs.visible and ours.ragged == inputs.ragged


@pytest.mark.parametrize("method", ["none", "visionzip", "sparsevlm"])
def test_a_program_reads_as_the_model_does(asked, method, directory, tmp_path, capsys):
    model, inputs, images, ids, lengths = asked
    out = tmp_path / "out"
    flags = [] if method == "none" else [f"--method={method}", "--keep=0.5"]
    assert cli.main(["export", f"--model={directory}", "--format=stablehlo", f"--out={out}", *flags]) == 0
    program = export.deserialize(bytearray((out / "prefill.stablehlo").read_bytes()))
    expected = (model if method == "none" else reduce(model, method, keep=0.5)).read(inputs, max_new_tokens=1)
    found = program.call(images, ids, lengths)
    np.testing.assert_allclose(found["logits"], expected.logits, atol=2e-5)
    np.testing.assert_allclose(program.call(images[:1], ids[:1], lengths[:1])["logits"], found["logits"][:1], atol=2e-5)
    card = json.loads((out / "model_card.json").read_text())
    assert card["plan"]["method"] == method and card["data"]["size"] == SIZE
    if method != "none":
        assert found["owner"].shape == (3, 64)
        assert card["cost_of_an_image"]["gmacs"] < card["cost_of_an_image"]["gmacs_without_plan"]


def test_transformers_loads_it_and_answers_alike(asked, directory, tmp_path, capsys, highest_precision):
    model, inputs, images, ids, lengths = asked
    out = tmp_path / "out"
    assert cli.main(["export", f"--model={directory}", f"--out={out}"]) == 0
    theirs = transformers.LlavaForConditionalGeneration.from_pretrained(out, attn_implementation="eager").eval()
    ours = load(out)
    expected = ours.read(inputs, max_new_tokens=1).logits
    before = int(inputs.places.before[0, 0])
    for row, length in enumerate(lengths):
        text = ids[row, :length].tolist()
        whole = text[:before] + [model.config.image_token] * 64 + text[before:]
        pixels = torch.tensor(np.moveaxis(inputs.pixels[row], -1, 1))
        with torch.no_grad():
            said = theirs(input_ids=torch.tensor([whole]), pixel_values=pixels).logits[0, -1]
        np.testing.assert_allclose(expected[row], said.float().numpy(), atol=2e-4)
    assert (out / "tokenizer.json").read_text() == (directory / "tokenizer.json").read_text()
    assert json.loads((out / "model_card.json").read_text())["format"]["class"] == "LlavaForConditionalGeneration"


def test_what_is_no_llava_or_has_no_room_is_refused(asked):
    model = asked[0]
    other = dataclasses.replace(model, config=dataclasses.replace(model.config, family="llava_next"))
    with pytest.raises(UserError, match="'llava_next'"):
        check_llava(other)
    with pytest.raises(UserError, match="leaves no space"):
        question_program(model, 1)
    with pytest.raises(UserError, match="without a tokenizer"):
        question_program(dataclasses.replace(model, processor=None), TEXT)
