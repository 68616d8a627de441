"""Sweeping a vision-language model: what is measured, and the whole command at tiny size."""

import jax
import numpy as np
import pytest
import tokenizers

from jtok import cli
from jtok.data.question_text import VOCABULARY, decode_answer, decode_question
from jtok.data.questions import KINDS, digit_questions
from jtok.errors import UserError
from jtok.evaluation.sweeps.study import read_records
from jtok.evaluation.sweeps.sweep import Cell
from jtok.evaluation.vqa.question_study import detail_rows, kind_row
from jtok.evaluation.vqa.questions import held_out_questions, run_cell, visual_tokens
from jtok.methods.catalogue import make_plan
from jtok.models.vlm.model import load
from jtok.training.tasks.answer_questions import AnswerQuestions
from jtok.training.tasks.question_model import save_model
from tests.training.test_answer_questions import tiny_config


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model that has learned nothing but to say "no" and stop: right about half of the presence questions."""
    config = tiny_config()
    task = AnswerQuestions(config)
    params = task.init(jax.random.key(0))
    language = params["model"]["language"]
    for block in ("out", "down"):
        language["blocks"][block]["kernel"] *= 0  # the last token's embedding reaches the head as it is
    words = np.eye(language["embedding"].shape[0], 32).astype(np.float32)
    words[:, 31] = 1
    language["embedding"] = words
    head = np.zeros((32, len(words)), np.float32)
    no = VOCABULARY.index("no")
    head[31, no] = 1
    words[no, 31], words[no, 30] = 0, 1
    head[30, 2] = 1
    language["head"] = head
    path = tmp_path_factory.mktemp("model")
    save_model(task, params, path)
    return path


def test_an_answer_is_right_when_the_model_says_exactly_it(directory):
    model = load(directory)
    questions = held_out_questions(model, 21, batch=4, size=64)
    record = run_cell(model, Cell("none", 1.0), questions)
    data = digit_questions("test", size=64, length=21)
    said = []
    for i in range(21):
        text = model.generate(data[i]["image"], decode_question(data[i]["question"]), tokens=4)
        said.append(text == decode_answer(data[i]["answer"]))
    assert record["correct"] == sum(said) > 0 and record["total"] == 21
    assert record["accuracy"] == pytest.approx(np.mean(list(record["kinds"].values())))
    assert record["kinds"]["presence"] == np.mean([s for i, s in enumerate(said) if KINDS[i % 7] == "presence"])
    assert record["kinds"]["count"] == 0 and record["tokens_end"] == 64


def test_visual_tokens_of_every_layer(directory):
    config = load(directory).config
    assert visual_tokens(make_plan("random", config.target(), 0.25), config) == [16, 16]
    assert visual_tokens(make_plan("none", config.target()), config) == [64, 64]


def test_a_line_of_the_table_tells_tokens_and_every_kind():
    kinds = {kind: 0.1 * i for i, kind in enumerate(KINDS)}
    row = kind_row("fastv", {"kinds": kinds, "accuracy": 0.3, "tokens_end": 20})
    assert row["tokens"] == 20 and len(row) == 3 + len(KINDS) and row["left"] == f"{100 * kinds['left']:.1f}"


def test_a_model_of_other_words_is_refused(directory):
    model = load(directory)
    with pytest.raises(UserError, match="does not know 'colour'"):
        model.generate(np.zeros((64, 64, 3), np.uint8), "what colour is it")
    ids = {word: i if i < 4 else 4 + (i - 3) % (len(VOCABULARY) - 4) for i, word in enumerate(VOCABULARY)}
    model.processor.tokenizer.inner.model = tokenizers.models.WordLevel(ids)
    with pytest.raises(UserError, match="does not spell"):
        held_out_questions(model, 7, size=64)


def test_the_command_writes_tables_plots_and_a_report(directory, tmp_path, capsys):
    flags = [f"--config.sweep.model={directory}", "--config.sweep.questions=14", f"--workdir={tmp_path}"]
    flags += ['--config.sweep.methods=("random",)', "--config.sweep.keeps=(0.25,)"]
    assert cli.main(["sweep", "--config=configs/vlm/digit_scenes.py", *flags]) == 0
    records = read_records(tmp_path)
    assert [(r["method"], r["tokens_end"]) for r in records] == [("none", 64), ("random", 16)]
    assert records[1]["gmacs"] < records[0]["gmacs"] == records[1]["gmacs_unreduced"]
    printed = capsys.readouterr().out
    assert "chance" in printed and "presence" in printed
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert cli.main(["evaluate", f"--model={directory}", "--images=14"]) == 0
    assert "of 14" in capsys.readouterr().out


def test_questions_that_a_down_sampled_image_does_not_answer_stand_apart():
    def record(method, keep, answers):
        return {"method": method, "keep": keep, "answers": answers}

    records = [
        record("none", 1.0, "11110"),
        record("downsample-image", 0.5, "11000"),
        record("fastv", 0.5, "01101"),
        record("fastv", 0.25, "11111"),  # no image was down-sampled to this
    ]
    assert detail_rows(records) == [{"method": "questions", "0.5": "2"}, {"method": "fastv", "0.5": "50.0"}]
