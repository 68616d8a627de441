"""Several questions about one digit scene: what a model is trained on, so that each image is encoded once.

The pictures are those of `digit_questions`, which come equally often from the seven kinds of scenes; about each the
question it was made for is asked, and others that its digits answer, each at most once.
"""

from __future__ import annotations

import dataclasses

import grain.python as grain
import numpy as np

from jtok.data.canvas import Dice
from jtok.data.question_text import NUMBERS, PAD, encode_answer, encode_question
from jtok.data.questions import CORNERS, KINDS, DigitQuestions, Scene, article, clear_sides, digit_questions, quarters
from jtok.errors import UserError

_HIGHER = 1.2  # times as high as any other digit is the largest one


@dataclasses.dataclass(frozen=True)
class QuestionSets:
    """A random-access source; set `i` depends on the source of scenes, on i, and on nothing else."""

    scenes: DigitQuestions
    questions: int

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        scene = self.scenes.scene(index)
        asked = {scene.question: (scene.kind, scene.answer)}
        dice = Dice(self.scenes.seed, int(index), 2, draws=8 * self.questions)
        offset = dice.whole(0, len(KINDS))
        for attempt in range(2 * self.questions):  # some kinds do not fit, some questions are asked already
            if len(asked) == self.questions:
                break
            kind = KINDS[(offset + attempt) % len(KINDS)]
            extra = further_question(kind, scene, self.scenes.size, dice)
            if extra is not None:
                asked.setdefault(extra[0], (kind, extra[1]))
        return scene.picture() | self._ids(asked)

    def _ids(self, asked: dict[str, tuple[str, str]]) -> dict[str, np.ndarray]:
        ids = [encode_question(question) for question in asked]
        answers = [encode_answer(answer) for _, answer in asked.values()]
        kinds = [KINDS.index(kind) for kind, _ in asked.values()]
        empty = self.questions - len(asked)
        question = np.pad(np.stack(ids), ((0, empty), (0, 0)), constant_values=PAD)
        return {
            "question": question,
            "question_length": (question != PAD).sum(1, dtype=np.int32),
            "answer": np.pad(np.stack(answers), ((0, empty), (0, 0)), constant_values=PAD),
            "kind": np.pad(np.array(kinds, np.int32), (0, empty), constant_values=-1),
        }


def further_question(kind: str, scene: Scene, size: int, dice: Dice) -> tuple[str, str] | None:
    """A question of that kind about a scene made for any, and its answer; None where the scene does not allow one."""
    classes, count = scene.classes, len(scene.classes)
    if kind == "count":
        return "how many digits are there", str(count)
    if kind == "presence":
        asked = _someone(classes, 0.5, dice)
        return f"is there {article(asked)}", "yes" if asked in classes else "no"
    if kind == "times":
        asked = _someone(classes, 0.75, dice)
        times = classes.count(asked)
        return (f"how many times does {article(asked)} occur", str(times)) if times <= 3 else None
    if kind == "sum":
        return ("what is the sum of the digits", str(sum(classes))) if count in (2, 3) else None
    if count < 2:
        return None
    if kind == "largest":
        heights = [box[2] - box[0] for box in scene.boxes]
        largest, second = np.argsort(heights)[::-1][:2]
        clear = heights[largest] >= _HIGHER * heights[second]
        return ("which digit is largest", str(classes[largest])) if clear else None
    if not clear_sides(kind, scene.centres, size):
        return None
    if kind == "left":
        answer, asked = (classes[place] for place in np.argsort(scene.centres[:, 1])[:2])
        return (f"what is left of the {NUMBERS[asked]}", str(answer)) if len(set(classes)) == count else None
    alone = np.flatnonzero(quarters(scene.centres, size) == 1)
    corner = int(alone[dice.whole(0, len(alone))])
    inside = [quarters(centre[None], size)[corner] for centre in scene.centres]
    return f"which digit is {CORNERS[corner]}", str(classes[int(np.argmax(inside))])


def _someone(classes: list[int], share: float, dice: Dice) -> int:
    """A class that is there, in `share` of the draws, else one that is not."""
    there = sorted(set(classes))
    absent = [label for label in range(10) if label not in there]
    pool = there if dice.real(0, 1) < share else absent
    return pool[dice.whole(0, len(pool))]


def digit_question_sets(
    split: str,
    *,
    questions: int = 10,
    size: int = 96,
    cut: str = "stratified",
    seed: int = 0,
    length: int | None = None,
) -> grain.MapDataset:
    """Up to `questions` questions about each scene, as a Grain data set of arrays.

    image, labels, boxes: as in `digit_questions`. question: int32 [questions, 8]; question_length: int32 [questions],
    0 where there is no further question; answer: int32 [questions, 2]; kind: int32 [questions], -1 likewise.
    Raises UserError as `digit_questions` does, and for `questions` under 1.
    """
    if questions < 1:
        raise UserError(f"A set needs at least 1 question, not {questions}.")
    digit_questions(split, size=size, cut=cut, seed=seed, length=length)  # raises what there is to raise
    length = len(digit_questions(split, size=size, cut=cut, seed=seed, length=length))
    return grain.MapDataset.source(QuestionSets(DigitQuestions(split, size, cut, seed, length), questions))
