"""Scores worked out by hand from the published rules."""

import math

import numpy as np
import pytest

from jtok.errors import UserError
from jtok.evaluation.vqa import scores as vqa
from jtok.evaluation.vqa.answer_text import mmbench_choice, science_choice, textvqa_answer, vqa_answer


@pytest.mark.parametrize(
    "text, plain",
    [
        ("The  Dog", "dog"),
        ("two\tdogs\n", "2 dogs"),
        ("None", "0"),
        ("an apple, a pear", "apple pear"),  # the comma touches a space
        ("red/blue", "red blue"),  # the slash touches none
        ("red/blue / green", "redblue green"),  # now it does somewhere, so every one vanishes
        ("1,000", "1000"),  # a comma between digits
        ("1,000 (about-five)", "1000 aboutfive"),  # ... takes all other marks out with it
        ("10.5 m.p.h.", "10.5 mph"),
        ("its 3.", "its 3"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'll", "y'all'll"),
        ("somebody'd", "somebodyd"),  # a slip of the published list, kept
        ("Im", "im"),  # the published list has "Im", which lower case never meets
        ("shed", "shed"),  # a word of its own
        ("eleven", "eleven"),
        ("what?", "what"),
        ("x-ray", "x ray"),
        ("." * 40, "." * 8),  # 32 periods at most
    ],
)
def test_vqa_normalisation(text, plain):
    assert vqa_answer(text) == plain


@pytest.mark.parametrize(
    "text, plain",
    [
        ("McDonald's", "mcdonald 's"),
        ("1,000", "1000"),
        ("a, b", "b"),
        ("Stop?!", "stop"),
        ("red,blue", "redblue"),  # VQA's own makes two words of it
    ],
)
def test_textvqa_normalisation(text, plain):
    assert textvqa_answer(text) == plain
    assert vqa_answer("red,blue") == "red blue"


@pytest.mark.parametrize("agreeing, score", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
@pytest.mark.parametrize("rule", [vqa.vqav2_score, vqa.textvqa_score])
def test_soft_accuracy_over_ten_people(rule, agreeing, score):
    # n agree: each of them sees n - 1 others, each of the 10 - n sees n. For 1: 9 of 10 see one, (9 / 3) / 10 = 0.3.
    answers = ["cat"] * agreeing + [f"other{n}" for n in range(10 - agreeing)]
    assert rule("A cat.", answers) == pytest.approx(score)


def test_where_the_two_soft_accuracies_part():
    # VQAv2 takes people's answers as published, lower case and articles included; TextVQA normalises them too.
    people = ["The Cat"] * 9 + ["dog"]
    assert vqa.vqav2_score("cat", people) == 0 and vqa.textvqa_score("cat", people) == 1
    # VQAv2 takes punctuation out of people's answers, but only where they differ.
    assert vqa.vqav2_score("black white", ["black-white"] * 9 + ["grey"]) == 1
    assert vqa.vqav2_score("black white", ["black-white"] * 10) == 0


def test_mean_score():
    mean, scores = vqa.mean_score(vqa.gqa_score, ["Yes.", "a dog", " left "], ["yes", "dog", "left"])
    assert mean == pytest.approx(2 / 3) and scores.tolist() == [1, 0, 1]


def test_pope():
    predictions = ["Yes, there is.", "No", "there is not a car", "Not sure. no", "yes", "None at all"]
    assert [vqa.pope_answer(text) for text in predictions] == ["yes", "no", "no", "yes", "yes", "yes"]
    labels = ["yes", "yes", "no", "no", "yes", "no"]
    # Said yes 4 times, 2 of them right; 3 are yes; right are 0, 2 and 4.
    scores = vqa.pope_scores(predictions, labels)
    assert scores == pytest.approx(
        {"accuracy": 1 / 2, "precision": 1 / 2, "recall": 2 / 3, "f1": 4 / 7, "yes_ratio": 2 / 3}
    )
    nothing = vqa.pope_scores(["no", "no"], ["yes", "no"])
    assert nothing == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}


def test_mme():
    rows = [
        ("Yes", "yes", "existence", "a.jpg"),
        ("No, it is not", "no", "existence", "a.jpg"),
        ("yes", "yes", "existence", "b.jpg"),
        ("It is", "no", "existence", "b.jpg"),  # neither yes nor no among the first four characters: wrong
        ("no", "no", "OCR", "a.jpg"),  # another image, though of the same name
        ("NO", "yes", "OCR", "a.jpg"),
        (" Yes", "yes", "code_reasoning", "c.png"),
        ("no", "no", "code_reasoning", "c.png"),
    ]
    scores = vqa.mme_scores(*zip(*rows, strict=True))
    assert scores["subtasks"]["existence"] == {"accuracy": 0.75, "accuracy_plus": 0.5, "score": 125}
    assert scores["subtasks"]["OCR"] == {"accuracy": 0.5, "accuracy_plus": 0, "score": 50}
    assert scores["perception"] == 175 and scores["cognition"] == 200
    assert vqa.mme_answer("It is yes") == "other"


@pytest.mark.parametrize(
    "text, place",
    [
        ("B", 1),
        (" C\t", 2),
        ("A. West Virginia", 0),
        ("The answer is B.", 1),
        ("First, the map. The answer is C because", 2),
        ("B\nbecause", 1),
        ("D", None),  # there are three choices
        ("b", None),
        ("Because of it", None),
        ("", None),
    ],
)
def test_choices_of_scienceqa(text, place):
    assert science_choice(text, 3) == place


def test_scienceqa():
    choices = [["x", "y"], ["x", "y"], ["x", "y", "z"], ["x", "y"]]
    scores = vqa.scienceqa_scores(
        ["A", "B", "no idea", "B. y"], ["A", "A", "C", "B"], choices, [True, True, True, False]
    )
    assert scores == pytest.approx({"accuracy": 2 / 4, "image_accuracy": 1 / 3})
    assert "image_accuracy" not in vqa.scienceqa_scores(["A"], ["A"], [["x", "y"]], [False])


CHOICES = ["a cat", "a small dog", "None", "bird"]


@pytest.mark.parametrize(
    "text, place",
    [
        ("B", 1),
        ("(C)", 2),
        ("D. bird", 3),
        ("A", 0),
        ("A small dog it is", 1),  # "A" among more than three words may be an article; the text decides
        ("A or B", None),
        ("It is a small dog", 1),
        ("E", None),
        ("a cat and a bird", None),
        ("bird " * 20, None),  # more than twice as long as the choices
        ("fish", None),
    ],
)
def test_choices_of_mmbench(text, place):
    assert mmbench_choice(text, CHOICES) == place


def test_mmbench_wants_every_rotation_right():
    rows = [  # (prediction, right letter, choices, question, category)
        ("A", "A", ["1", "2"], "q1", "ocr"),
        ("B", "B", ["2", "1"], "q1", "ocr"),
        ("A", "A", ["1", "2"], "q2", "ocr"),
        ("A", "B", ["2", "1"], "q2", "ocr"),  # always A: right once, so wrong
        ("B", "C", ["1", "2", "3"], "q3", "logic"),
        ("B", "B", ["2", "3", "1"], "q3", "logic"),
        ("A", "A", ["3", "1", "2"], "q3", "logic"),
    ]
    scores = vqa.mmbench_scores(*zip(*rows, strict=True))
    assert scores["accuracy"] == pytest.approx(1 / 3) and scores["plain_accuracy"] == pytest.approx(2 / 3)
    assert scores["categories"] == {"logic": 0, "ocr": 0.5}
    with pytest.raises(UserError, match="Question q3 has 2 rotations"):
        vqa.mmbench_scores(*zip(*rows[:-1], strict=True))


def test_down_sample_filter():
    full = [1, 1, 1, 0, 0, 1]
    down = [1, 0, 0, 0, 1, 0.9]
    sorted_out = vqa.down_sample_filter(full, down)
    assert sorted_out.answered.tolist() == [True, False, False, False, True, True]
    assert sorted_out.rest.tolist() == [False, True, True, True, False, False]
    assert sorted_out.hard.tolist() == [False, True, True, False, False, False]
    # A method that keeps all that down-sampling answers and one of the two hard ones.
    accuracy = sorted_out.accuracy([1, 1, 0, 0, 1, 0.5])
    assert accuracy == pytest.approx({"all": 3.5 / 6, "answered": 2.5 / 3, "rest": 1 / 3, "hard": 1 / 2})
    assert sorted_out.accuracy(full)["hard"] == 1  # by its making
    everything = vqa.down_sample_filter([1, 1], [1, 1]).accuracy([1, 0])
    assert everything["answered"] == 0.5 and math.isnan(everything["rest"]) and math.isnan(everything["hard"])
    soft = vqa.down_sample_filter([0.6, 0.3], [0.3, 0.3], threshold=0.3)
    assert soft.answered.all() and not soft.hard.any()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: vqa.vqav2_score("a", []), "VQAv2 question without"),
        (lambda: vqa.textvqa_score("a", []), "TextVQA question without"),
        (lambda: vqa.mean_score(vqa.gqa_score, ["a"], []), "equally many"),
        (lambda: vqa.pope_scores([], []), "no predictions"),
        (lambda: vqa.mme_scores(["yes"], ["yes"], ["cooking"], ["a"]), "no subtask 'cooking'"),
        (lambda: vqa.mme_scores(["yes"], ["yes"], ["OCR"], ["a"]), "image 'a' of MME's OCR has 1"),
        (lambda: vqa.down_sample_filter([1, 0], [1]), "shapes"),
        (lambda: vqa.down_sample_filter([], []), "shapes"),
        (lambda: vqa.down_sample_filter([1], [0]).accuracy(np.ones(2)), "filter has 1 questions"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(UserError, match=words):
        call()
