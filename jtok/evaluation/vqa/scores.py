"""The official scores of visual question answering benchmarks, and the filter for what a down-sampled image answers.

All accuracies are shares in 0..1 except MME's, which has a scale of its own. Predictions are the texts a model wrote;
the answers beside them are those of the readers in `jtok.data.vqa`.
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from jtok.data.vqa import MME_COGNITION, MME_PERCEPTION
from jtok.errors import UserError
from jtok.evaluation.vqa.answer_text import (
    mmbench_choice,
    science_choice,
    strip_punctuation,
    textvqa_answer,
    vqa_answer,
)


def _check_lengths(**columns: Sequence) -> None:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"There must be equally many of each, and there are {lengths}.")
    if 0 in lengths.values():
        raise UserError("There are no predictions to score.")


def _agreement(prediction: str, answers: Sequence[str]) -> float:
    """min(n / 3, 1), n being how many of the *other* people agree, averaged over leaving out each person once."""
    same = [answer == prediction for answer in answers]
    return sum(min((sum(same) - one) / 3, 1) for one in same) / len(same)


def vqav2_score(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy of one answer to a VQAv2 question (arXiv:1612.00837), averaged over leaving out each person.

    With ten answers, n of them the predicted one, that is 0.3, 0.6, 0.9 and 1 for n of 1, 2, 3 and more (not n/3).
    The prediction is normalised; people's answers, which were published so, lose only their punctuation, and only
    where they are not all the same, as in the evaluation code of VQA.
    Raises UserError without answers.
    """
    if not answers:
        raise UserError("A VQAv2 question without people's answers cannot be scored; this may be a test split.")
    if len(set(answers)) > 1:
        answers = [strip_punctuation(answer) for answer in answers]
    return _agreement(vqa_answer(prediction), answers)


def textvqa_score(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy of one answer to a TextVQA question (arXiv:1904.08920), averaged over leaving out each person.

    As `vqav2_score`, but prediction and people's answers are normalised alike.
    Raises UserError without answers.
    """
    if not answers:
        raise UserError("A TextVQA question without people's answers cannot be scored; this may be the test split.")
    return _agreement(textvqa_answer(prediction), [textvqa_answer(answer) for answer in answers])


def gqa_score(prediction: str, answer: str) -> float:
    """1 where the answer is exactly the right one (arXiv:1902.09506), or else 0.

    GQA's answers are lower case and without a period, and models are not bound to be, so case, a final period and
    space around the prediction do not count, as in LLaVA's evaluation.
    """
    return float(prediction.strip().rstrip(".").lower() == answer)


def mean_score(
    score: Callable[[str, Any], float], predictions: Sequence[str], answers: Sequence[Any]
) -> tuple[float, Float[np.ndarray, " n"]]:
    """The mean of a score of one question over many, and all of them, float64 [n].

    Raises UserError for no predictions, or not as many answers.
    """
    _check_lengths(predictions=predictions, answers=answers)
    scores = np.array([score(prediction, answer) for prediction, answer in zip(predictions, answers, strict=True)])
    return float(scores.mean()), scores


def pope_answer(prediction: str) -> str:
    """yes or no: no where the first sentence has the word "No", "no" or "not", or else yes."""
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def pope_scores(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """accuracy, precision, recall, f1 and yes_ratio of POPE (arXiv:2305.10355), "yes" being positive.

    A ratio of nothing to nothing is 0. Raises UserError for no predictions, or not as many labels.
    """
    _check_lengths(predictions=predictions, labels=labels)
    said = np.array([pope_answer(prediction) == "yes" for prediction in predictions])
    right = np.array([label == "yes" for label in labels])
    hits = float((said & right).sum())
    precision, recall = hits / max(said.sum(), 1), hits / max(right.sum(), 1)
    return {
        "accuracy": float((said == right).mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(2 * precision * recall / (precision + recall)) if hits else 0.0,
        "yes_ratio": float(said.mean()),
    }


def mme_answer(prediction: str) -> str:
    """yes, no or other: by the first four characters, whatever their case."""
    start = prediction.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_scores(
    predictions: Sequence[str], labels: Sequence[str], subtasks: Sequence[str], pairs: Sequence[Hashable]
) -> dict[str, Any]:
    """MME's scores (arXiv:2306.13394): {"perception", "cognition", "subtasks": {name: {...}}}.

    A subtask has an `accuracy` over its questions, an `accuracy_plus` over its images, of which both questions must be
    right, and a `score`, 100 times their sum. perception (at most 2000) and cognition (at most 800) are the sums of
    the scores of their subtasks; subtasks without questions count nothing.
    Raises UserError for an unknown subtask, or an image that has not two questions.
    """
    _check_lengths(predictions=predictions, labels=labels, subtasks=subtasks, pairs=pairs)
    right: dict[str, dict[Hashable, list[bool]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for prediction, label, subtask, pair in zip(predictions, labels, subtasks, pairs, strict=True):
        if subtask not in (*MME_PERCEPTION, *MME_COGNITION):
            raise UserError(f"MME has no subtask '{subtask}'.")
        right[subtask][pair].append(mme_answer(prediction) == label)
    scores = {}
    for subtask, images in right.items():
        odd = next((pair for pair, both in images.items() if len(both) != 2), None)
        if odd is not None:
            raise UserError(f"The image '{odd}' of MME's {subtask} has {len(images[odd])} questions; it needs two.")
        both = np.array(list(images.values()))
        accuracy, plus = float(both.mean()), float(both.all(1).mean())
        scores[subtask] = {"accuracy": accuracy, "accuracy_plus": plus, "score": 100 * (accuracy + plus)}
    sums = {
        name: sum(scores[subtask]["score"] for subtask in members if subtask in scores)
        for name, members in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION))
    }
    return sums | {"subtasks": scores}


def scienceqa_scores(
    predictions: Sequence[str], letters: Sequence[str], choices: Sequence[Sequence[str]], has_image: Sequence[bool]
) -> dict[str, float]:
    """The accuracy over all ScienceQA questions (arXiv:2209.09513), and `image_accuracy` over those with an image.

    An answer that names no choice is wrong (its authors' code then guesses; see `science_choice` for what counts).
    image_accuracy is left out when there are none. Raises UserError for no predictions, or not as many of the rest.
    """
    _check_lengths(predictions=predictions, letters=letters, choices=choices, has_image=has_image)
    named = [science_choice(text, len(options)) for text, options in zip(predictions, choices, strict=True)]
    right = np.array(
        [place is not None and "ABCDE"[place] == letter for place, letter in zip(named, letters, strict=True)]
    )
    pictured = np.array(has_image, bool)
    scores = {"accuracy": float(right.mean())}
    return scores | ({"image_accuracy": float(right[pictured].mean())} if pictured.any() else {})


def mmbench_scores(
    predictions: Sequence[str],
    letters: Sequence[str],
    choices: Sequence[Sequence[str]],
    indices: Sequence[Hashable],
    categories: Sequence[str],
) -> dict[str, Any]:
    """MMBench's circular evaluation (arXiv:2307.06281): {"accuracy", "plain_accuracy", "categories": {name: accuracy}}.

    `indices` names the question that each prediction is a rotation of; a question is right when every rotation is.
    plain_accuracy is that of the first rotation given. An answer that names no choice is wrong (the official code
    asks a language model which is meant; see `mmbench_choice` for what counts without).
    Raises UserError for no predictions, not as many of the rest, or a question without all of its rotations.
    """
    _check_lengths(predictions=predictions, letters=letters, choices=choices, indices=indices, categories=categories)
    right: dict[Hashable, list[bool]] = collections.defaultdict(list)
    category_of, rotations = {}, {}
    for text, letter, options, index, category in zip(predictions, letters, choices, indices, categories, strict=True):
        place = mmbench_choice(text, options)
        right[index].append(place is not None and "ABCD"[place] == letter)
        category_of[index], rotations[index] = category, len(options)
    short = next((index for index in right if len(right[index]) != rotations[index]), None)
    if short is not None:
        raise UserError(f"Question {short} has {len(right[short])} rotations; it needs one for each of its choices.")
    circular = np.array([all(turns) for turns in right.values()])
    names = np.array([category_of[index] for index in right])
    return {
        "accuracy": float(circular.mean()),
        "plain_accuracy": float(np.mean([turns[0] for turns in right.values()])),
        "categories": {str(name): float(circular[names == name].mean()) for name in np.unique(names)},
    }


@dataclasses.dataclass(frozen=True)
class DownSampleFilter:
    """Which questions a model answers from a down-sampled image, and which are left to tell token reducers apart.

    answered: the down-sampled image is enough. rest: it is not. hard: it is not, but the full image is, so that an
    answer lost there was lost by the reduction. All bool [n]; `answered` and `rest` share out the questions.
    """

    answered: Bool[np.ndarray, " n"]
    rest: Bool[np.ndarray, " n"]
    hard: Bool[np.ndarray, " n"]

    def accuracy(self, correct: Sequence[float]) -> dict[str, float]:
        """The mean of a method's correctness [n] over "all", "answered", "rest" and "hard"; NaN over no questions.

        Raises UserError when there are not as many values as questions.
        """
        values = np.asarray(correct, np.float64)
        if values.shape != self.answered.shape:
            raise UserError(
                f"The filter has {len(self.answered)} questions, and the values are of shape {values.shape}."
            )
        masks = {"all": np.ones_like(self.answered), "answered": self.answered, "rest": self.rest, "hard": self.hard}
        return {name: float(values[mask].mean()) if mask.any() else float("nan") for name, mask in masks.items()}


def down_sample_filter(
    correct_full: Sequence[float], correct_down: Sequence[float], *, threshold: float = 0.5
) -> DownSampleFilter:
    """Sorts questions by whether the unreduced model needs the full image for them.

    On common benchmarks, plain down-sampling of the image beats many published token reducers, because most questions
    need no detail; the others distinguish reducers (Liao et al., "Are We Using the Right Benchmark: An
    Evaluation Framework for Visual Token Compression Methods", arXiv:2510.07143).
    correct_full, correct_down: the model's correctness [n] on the full and on the down-sampled images, both without
    reduction; soft scores count as correct from `threshold` on.
    Raises UserError for no questions, or arrays of different or more than one-dimensional shape.
    """
    full, down = (np.asarray(values, np.float64) >= threshold for values in (correct_full, correct_down))
    if full.shape != down.shape or full.ndim != 1 or not full.size:
        raise UserError(f"The filter needs two equally long rows of scores, not shapes {full.shape} and {down.shape}.")
    return DownSampleFilter(answered=down, rest=~down, hard=full & ~down)
