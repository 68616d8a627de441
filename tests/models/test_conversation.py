"""Several questions: on the cache that the first one left, or after rereading everything."""

import numpy as np
import pytest
import torch

import jtok
from jtok.errors import UserError
from jtok.models.vlm.conversation import Conversation
from tests.models import language
from tests.models.processing import checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("highest_precision")]
QUESTIONS = "What is written on the sign?", "How many cats are there?"


@pytest.fixture(scope="module")
def model(directory):
    return jtok.load(directory[1])


def talk(model, reread, max_new_tokens=80):
    """(the conversation, its two answers)."""
    one = Conversation(model, checkpoints.picture(70, 90), max_new_tokens=max_new_tokens)
    return one, [one.ask(QUESTIONS[0], tokens=6), one.ask(QUESTIONS[1], reread=reread, tokens=8)]


@pytest.mark.parametrize("tokens", [16, 4])
def test_a_question_on_the_cache_is_a_question_on_everything_read_anew(directory, model, tokens):
    """All tokens of the image, or four of them that no question has a say in."""
    reduced = jtok.reduce(model, "uniform-grid", tokens=tokens)
    (cached, answers), (reread_talk, expected) = (talk(reduced, reread) for reread in (False, True))
    assert answers == expected and cached.ids == reread_talk.ids and len(answers[1]) > 3
    assert cached._state.caches[0].slots < reread_talk._state.caches[0].slots  # whose prompt was longer
    if tokens == 16:
        processor = model.processor
        prompt = processor.place(cached.ids[:-8], processor.images([checkpoints.picture(70, 90)]))
        with torch.no_grad():
            out = directory[0].generate(**language.reference(prompt), max_new_tokens=8, do_sample=False)
        assert processor.tokenizer.decode(out[0, len(prompt.ids) :].tolist()).strip() == answers[1]


def test_what_follows_an_answer(model):
    """The rendered conversation truncated after its answer, whose stop token is written once."""
    processor = model.processor
    text = "USER: " + QUESTIONS[1] + " ASSISTANT:"
    ids = processor.follow_up(QUESTIONS[1])
    assert ids[0] == processor.tokenizer.stops[0] and processor.tokenizer.decode(ids) == text
    one = Conversation(model, checkpoints.picture(70, 90))
    one.ids = [5, processor.tokenizer.stops[0]]
    assert one._following(QUESTIONS[1]) == ids[1:]
    one.ids = [5, 6]
    assert one._following(QUESTIONS[1]) == ids


def test_a_conversation_without_free_slots_says_how_to_go_on(model):
    one = Conversation(model, checkpoints.picture(70, 90), max_new_tokens=20)
    one.ask(QUESTIONS[0], tokens=6)
    with pytest.raises(UserError, match="reread=True"):
        one.ask(QUESTIONS[1], tokens=6)
    assert one.ask(QUESTIONS[1], tokens=6, reread=True)
    with pytest.raises(UserError, match="raise max_new_tokens"):
        one.ask(QUESTIONS[1], tokens=21)


def test_something_to_look_at(model):
    with pytest.raises(UserError, match="no image to read"):
        Conversation(model).ask(QUESTIONS[0])
    with pytest.raises(UserError, match="takes no videos"):
        model.generate(None, QUESTIONS[0], video=[np.zeros((56, 56, 3), np.uint8)])
