"""The vision-language model that comes with jtok answers what its configuration says, within its size."""

import importlib.resources

import numpy as np
import pytest

import jtok
from jtok.data.question_text import decode_answer, decode_question
from jtok.data.questions import KINDS, digit_questions
from jtok.evaluation.sweeps.sweep import Cell
from jtok.evaluation.vqa.questions import held_out_questions, run_cell
from jtok.models.vlm.shipped import ASSET, shipped


@pytest.fixture(scope="module")
def model():
    return shipped()


def test_its_files_take_at_most_5_megabytes():
    files = (importlib.resources.files("jtok") / ASSET).iterdir()
    assert sum(len(file.read_bytes()) for file in files) <= 5e6


def test_it_answers_held_out_questions_and_random_pruning_hurts(model):
    questions = held_out_questions(model, 140, batch=35)
    whole = run_cell(model, Cell("none", 1.0), questions, single=False)
    few = run_cell(model, Cell("random", 1 / 9), questions, single=False)
    assert whole["accuracy"] >= 0.9 and min(whole["kinds"].values()) >= 0.75
    assert few["accuracy"] < 0.6 and set(whole["kinds"]) == set(KINDS)


def test_what_it_says_is_what_is_counted(model):
    data = digit_questions("test", size=72, length=7)
    said = [model.generate(e["image"], decode_question(e["question"]), tokens=4) for e in (data[i] for i in range(7))]
    right = [text == decode_answer(data[i]["answer"]) for i, text in enumerate(said)]
    assert sum(right) >= 5
    record = run_cell(model, Cell("none", 1.0), held_out_questions(model, 7, batch=7), single=False)
    assert record["correct"] == sum(right)


def test_it_answers_with_fewer_tokens(model):
    example = digit_questions("test", size=72)[4]
    few = jtok.reduce(model, "fastv", tokens=20)
    answer = few.generate(np.asarray(example["image"]), decode_question(example["question"]), tokens=4)
    assert answer == decode_answer(example["answer"])
