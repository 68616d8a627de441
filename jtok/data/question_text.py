"""The closed vocabulary of the digit-scene questions: words to ids and back.

A question is its words, an answer is one word and the end mark, both padded to a fixed length:

>>> decode_question(encode_question("Is there a seven?"))
'is there a seven'
>>> decode_answer(encode_answer("12"))
'12'
"""

import functools
import re

import numpy as np
from jaxtyping import Int

from jtok.errors import UserError

PAD, BOS, EOS, IMAGE = range(4)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LARGEST_SUM = 27  # of three digits
_WORDS = (
    *("which", "what", "how", "is", "digit", "digits", "the", "a", "an", "of", "there", "are", "many", "times", "does"),
    *("occur", "sum", "left", "top", "bottom", "right", "largest"),
)
ANSWERS = (*(str(number) for number in range(LARGEST_SUM + 1)), "yes", "no")
VOCABULARY = ("<pad>", "<bos>", "<eos>", "<image>", *_WORDS, *NUMBERS, *ANSWERS)  # a word's id is its place
QUESTION_LENGTH = 8
ANSWER_LENGTH = 2


@functools.cache
def _ids() -> dict[str, int]:
    return {word: place for place, word in enumerate(VOCABULARY)}


def _look_up(words: list[str]) -> list[int]:
    unknown = [word for word in words if word not in _ids()]
    if unknown:
        raise UserError(f"The word '{unknown[0]}' is not in the vocabulary of the digit-scene questions.")
    return [_ids()[word] for word in words]


def _padded(ids: list[int], length: int) -> np.ndarray:
    return np.array(ids + [PAD] * (length - len(ids)), np.int32)


def encode_question(text: str) -> Int[np.ndarray, "8"]:
    """The ids of a question, int32 [QUESTION_LENGTH], PAD after its words.

    Case and punctuation do not matter, and a numeral below ten stands for its word ("is there a 7").
    Raises UserError for a word outside the vocabulary, no words, or more than QUESTION_LENGTH of them.
    """
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    words = [NUMBERS[int(word)] if re.fullmatch("[0-9]", word) else word for word in words]
    if not 1 <= len(words) <= QUESTION_LENGTH:
        raise UserError(f"A digit-scene question has 1 to {QUESTION_LENGTH} words, and '{text}' has {len(words)}.")
    return _padded(_look_up(words), QUESTION_LENGTH)


def encode_answer(text: str) -> Int[np.ndarray, "2"]:
    """The ids of an answer, int32 [ANSWER_LENGTH]: its word, then EOS. Raises UserError unless it is one of ANSWERS."""
    if text not in ANSWERS:
        raise UserError(f"'{text}' is not an answer to a digit-scene question; those are 0 to {LARGEST_SUM}, yes, no.")
    return _padded([*_look_up([text]), EOS], ANSWER_LENGTH)


def decode_answer(ids: Int[np.ndarray, " length"]) -> str:
    """The words before the first EOS or PAD, joined by spaces; whatever ids a model generated.

    Raises UserError for an id outside the vocabulary.
    """
    words = []
    for token in np.asarray(ids).tolist():
        if token in (EOS, PAD):
            break
        if not 0 <= token < len(VOCABULARY):
            raise UserError(f"The id {token} is not in the vocabulary, which has {len(VOCABULARY)} words.")
        words.append(VOCABULARY[token])
    return " ".join(words)


def decode_question(ids: Int[np.ndarray, " length"]) -> str:
    """The text of an encoded question, lower case and without punctuation. Raises UserError as `decode_answer`."""
    return decode_answer(ids)
