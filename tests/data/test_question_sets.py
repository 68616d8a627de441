"""Several questions about one scene: every answer holds, and the scene is that of the single question."""

import numpy as np
import pytest

from jtok.data.question_sets import digit_question_sets
from jtok.data.question_text import decode_answer, decode_question
from jtok.data.questions import KINDS, digit_questions
from jtok.errors import UserError
from tests.data.test_questions import expected


def test_every_answer_follows_from_what_is_in_the_picture():
    sets, alone = digit_question_sets("train", size=72, questions=8), digit_questions("train", size=72)
    kinds = []
    for index in range(140):
        found, single = sets[index], alone[index]
        for name in ("image", "labels", "boxes"):
            np.testing.assert_array_equal(found[name], single[name])
        for name in ("question", "answer", "kind", "question_length"):
            np.testing.assert_array_equal(found[name][0], single[name])
        labels = [int(label) for label in found["labels"] if label >= 0]
        asked = found["question_length"] > 0
        texts = [decode_question(ids) for ids in found["question"][asked]]
        assert len(set(texts)) == len(texts) and (np.diff(asked.astype(int)) <= 0).all()
        assert (found["kind"][~asked] == -1).all() and (found["answer"][~asked] == 0).all()
        for text, answer in zip(texts, found["answer"], strict=False):
            assert decode_answer(answer) == expected(text, labels, found["boxes"][: len(labels)], 72), text
        kinds += found["kind"][asked].tolist()
    shares = np.bincount(kinds, minlength=len(KINDS)) / len(kinds)
    assert shares.min() > 0.03 and len(kinds) > 6 * 140


def test_a_set_needs_a_question():
    with pytest.raises(UserError, match="at least 1"):
        digit_question_sets("train", questions=0)
