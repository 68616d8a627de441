import collections

import numpy as np
import pytest

from jtok.data import batches, canvas, digit_questions, digits, make_dataset, question_text
from jtok.data.question_text import NUMBERS, decode_answer, decode_question, encode_answer, encode_question
from jtok.data.questions import CORNERS, KINDS, DigitQuestions, _members, _sides, chance_levels
from jtok.errors import UserError


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def expected(question: str, labels: list[int], boxes: np.ndarray, size: int) -> str:
    """The answer, from the labels and the boxes of the strokes alone."""
    words = question.split()
    rows, columns = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    asked = next((NUMBERS.index(word) for word in words if word in NUMBERS), None)
    if question == "how many digits are there":
        return str(len(labels))
    if question == "what is the sum of the digits":
        return str(sum(labels))
    if question == "which digit is largest":
        heights = boxes[:, 2] - boxes[:, 0]
        assert np.sort(heights)[-1] >= 1.19 * np.sort(heights)[-2]
        return str(labels[int(heights.argmax())])
    if words[:2] == ["is", "there"]:
        return "yes" if asked in labels else "no"
    if words[:3] == ["how", "many", "times"]:
        return str(labels.count(asked))
    if words[:3] == ["what", "is", "left"]:
        assert labels.count(asked) == 1
        (place,) = np.flatnonzero(columns < columns[labels.index(asked)])
        return str(labels[int(place)])
    assert " ".join(words[-2:]) in CORNERS and words[:3] == ["which", "digit", "is"]
    inside = ((rows < size / 2) == (words[-2] == "top")) & ((columns < size / 2) == (words[-1] == "left"))
    (place,) = np.flatnonzero(inside)
    return str(labels[int(place)])


@pytest.mark.parametrize("size, cut", [(96, "stratified"), (64, "contiguous")])
def test_every_answer_follows_from_what_is_in_the_picture(size, cut):
    dataset = digit_questions("test", size=size, cut=cut, length=700)
    for index in range(420):
        example = dataset[index]
        labels = [int(label) for label in example["labels"] if label >= 0]
        boxes = example["boxes"][: len(labels)]
        assert (example["boxes"][len(labels) :] == 0).all()
        question = decode_question(example["question"])
        assert decode_answer(example["answer"]) == expected(question, labels, boxes, size), question
        assert example["question_length"] == len(question.split()) and example["kind"] == index % len(KINDS)
        assert boxes.min() >= 0 and boxes.max() <= size
        for first in range(len(labels)):
            for second in range(first):  # no two boxes touch
                a, b = boxes[first], boxes[second]
                assert a[0] > b[2] or b[0] > a[2] or a[1] > b[3] or b[1] > a[3]


def test_shapes_and_dtypes():
    example = digit_questions("validation", size=80)[3]
    assert {key: (value.shape, value.dtype.name) for key, value in example.items()} == {
        "image": ((80, 80, 3), "uint8"),
        "question": ((8,), "int32"),
        "question_length": ((), "int32"),
        "answer": ((2,), "int32"),
        "kind": ((), "int32"),
        "labels": ((4,), "int32"),
        "boxes": ((4, 4), "float32"),
    }


def test_questions_come_in_batches():
    batch = next(iter(batches(digit_questions("test"), batch=14, seed=0, shuffle=True)))
    assert batch["image"].shape == (14, 96, 96, 3) and batch["question"].shape == (14, 8)
    assert batch["answer"].shape == (14, 2) and batch["kind"].shape == (14,)


def test_the_digits_of_the_picture_are_bright_and_18_to_28_pixels_high():
    for index in range(60):
        example = digit_questions("test")[index]
        for y0, x0, y1, x1 in example["boxes"][example["labels"] >= 0].astype(int):
            assert 14 <= y1 - y0 <= 28 and x1 - x0 <= 28
            assert np.percentile(example["image"][y0:y1, x0:x1].max(-1), 95) > 170


def test_an_example_depends_on_split_cut_seed_and_index_alone():
    first, again, other = (digit_questions("validation", seed=seed) for seed in (3, 3, 4))
    for index in (1999, 0, 5):
        assert equal(first[index], again[index])
        assert not np.array_equal(first[index]["image"], other[index]["image"])
    assert not np.array_equal(first[0]["image"], digit_questions("test", seed=3)[0]["image"])
    assert not np.array_equal(first[0]["image"], digit_questions("validation", seed=3, cut="contiguous")[0]["image"])
    assert equal(first[5], make_dataset("digit_questions", "validation", seed=3)[5])
    assert (len(digit_questions("train")), len(first), len(digit_questions("test", length=7))) == (10**6, 2000, 7)


@pytest.mark.parametrize("cut", digits.CUTS)
def test_every_digit_and_every_piece_of_one_belongs_to_the_split(cut, monkeypatch):
    """With every digit of the other splits blotted out, the scenes of a split stay as they are."""
    before = [digit_questions("test", cut=cut, size=64)[index] for index in range(35)]
    loaded = digits.sklearn.datasets.load_digits()
    loaded.data[np.setdiff1d(np.arange(1797), digits.split_indices("test", cut))] = 16
    monkeypatch.setattr(digits.sklearn.datasets, "load_digits", lambda: loaded)
    digits.sprites.cache_clear()
    try:
        assert all(equal(a, digit_questions("test", cut=cut, size=64)[index]) for index, a in enumerate(before))
    finally:
        digits.sprites.cache_clear()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_class_has_digits_high_enough_to_be_the_largest(split):
    sides = _sides(96)
    for pose in range(len(digits.POSES)):
        everybody, high = (_members(split, "stratified", sides, pose, high) for high in (False, True))
        assert all(len(some) > 0.9 * len(group) for some, group in zip(high, everybody, strict=True))


def test_the_longest_possible_scene_has_enough_draws(monkeypatch):
    monkeypatch.setattr(canvas.Dice, "clear_spot", exhausting_clear_spot)
    for index in range(70):
        digit_questions("test")[index]


def exhausting_clear_spot(dice, side, height, width, *boxes):
    for _ in range(8):
        dice.real(0, 1)
    return 0, 0


@pytest.fixture
def undrawn(monkeypatch):
    """Questions without their pictures, which take most of the time."""
    monkeypatch.setattr(DigitQuestions, "_draw", lambda self, cast, corners, dice: (None, [[0] * 4] * len(cast[0])))


def test_answers_are_balanced(undrawn):
    levels = chance_levels(digit_questions("train")[index] for index in range(2800))
    expected_uniform = {"corner": 1 / 10, "largest": 1 / 10, "count": 1 / 4, "presence": 1 / 2, "left": 1 / 10}
    expected_uniform["times"] = 1 / 4
    for kind, share in expected_uniform.items():
        assert levels[kind]["uniform"] == pytest.approx(share)
        assert levels[kind]["majority"] < share + 0.06
    assert levels["sum"]["majority"] < 0.11 and levels["sum"]["uniform"] <= 1 / 20
    assert all(levels[kind]["examples"] == 400 for kind in KINDS) and levels["all"]["examples"] == 2800


def test_chance_levels_by_hand():
    answers = [("presence", "yes"), ("presence", "yes"), ("presence", "no"), ("count", "1")]
    examples = [{"kind": np.int32(KINDS.index(kind)), "answer": encode_answer(answer)} for kind, answer in answers]
    levels = chance_levels(examples)
    assert levels["presence"] == {"majority": pytest.approx(2 / 3), "uniform": 0.5, "examples": 3}
    assert levels["count"] == {"majority": 1, "uniform": 1, "examples": 1}
    assert levels["all"] == {"majority": pytest.approx(3 / 4), "uniform": pytest.approx(2.5 / 4), "examples": 4}
    with pytest.raises(UserError, match="no questions"):
        chance_levels([])


def test_text_goes_to_ids_and_back():
    vocabulary = question_text.VOCABULARY
    assert len(set(vocabulary)) == len(vocabulary)
    for answer in question_text.ANSWERS:
        ids = encode_answer(answer)
        assert decode_answer(ids) == answer and ids[1] == question_text.EOS
    ids = encode_question(" Is there an EIGHT?")
    assert decode_question(ids) == "is there an eight" and (ids[4:] == question_text.PAD).all()
    assert np.array_equal(encode_question("is there a 7"), encode_question("is there a seven"))
    assert decode_answer([vocabulary.index("yes"), vocabulary.index("no")]) == "yes no"  # a model may say anything


def test_every_word_of_the_vocabulary_is_used(undrawn):
    used = collections.Counter()
    for index in range(7 * 80):
        used.update(decode_question(digit_questions("train")[index]["question"]).split())
    assert set(used) == set(question_text._WORDS) | set(NUMBERS)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: digit_questions("tests"), "no split 'tests'"),
        (lambda: digit_questions("test", cut="random"), "stratified, contiguous"),
        (lambda: digit_questions("test", size=63), "at least 64 pixels, not 63"),
        (lambda: digit_questions("test", length=0), "length >= 1"),
        (lambda: encode_question("what is this"), "word 'this' is not in the vocabulary"),
        (lambda: encode_question("?"), "has 0"),
        (lambda: encode_question("is " * 9), "1 to 8 words"),
        (lambda: encode_answer("28"), "'28' is not an answer"),
        (lambda: decode_answer([900]), "id 900"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(UserError, match=words):
        call()
