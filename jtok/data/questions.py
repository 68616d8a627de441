"""Questions about digit scenes: one to four whole handwritten digits on a cluttered canvas, a question, its answer.

The digits and background photographs are those of `digit_scenes`, and nothing crosses a split here either; the
digits are brighter than the litter and do not overlap. Seven kinds of question come equally often:

| kind      | question                               | scenes                                                       |
|-----------|----------------------------------------|--------------------------------------------------------------|
| corner    | which digit is top left (top right, …) | 2-4 digits, exactly one in the quarter asked for             |
| largest   | which digit is largest                 | 2-4 digits, one at least 1.2 times as high as any other      |
| count     | how many digits are there              | 1-4 digits                                                   |
| sum       | what is the sum of the digits          | 2 or 3 digits                                                |
| presence  | is there a seven                       | 1-4 digits, half of the answers "yes"                        |
| left      | what is left of the three              | 2-4 different digits, exactly one further left than that one |
| times     | how many times does a seven occur      | 1-4 digits, 0 to 3 of them that one                          |

Where sides are asked for, digits within 1/16 of the canvas of the dividing line (or of each other, for `left`) do not
occur. Classes are drawn uniformly, so that neither kind nor question reveals much about the answer; `chance_levels`
says how much.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import grain.python as grain
import numpy as np

from jtok.data import digits, photographs
from jtok.data.canvas import Dice, background, image_of, paint, photo_window
from jtok.data.question_text import NUMBERS, PAD, decode_answer, encode_answer, encode_question
from jtok.errors import UserError

KINDS = ("corner", "largest", "count", "sum", "presence", "left", "times")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIDES = (18, 20, 22, 24, 26, 28)  # side of a digit's 8x8 frame, in pixels of a 96-pixel canvas
MOST_DIGITS = 4
FRAGMENTS = 2
PATCHES = 2
_GAP = 2  # pixels of a 96-pixel canvas between two frames
_LAYOUTS = 48  # tried at a time


class _Cast(NamedTuple):
    """Who is in a scene: the class of each digit and the place in SIDES of its size; who or what is asked for."""

    classes: list[int]
    sizes: list[int]
    asked: int = 0  # a class
    largest: int | None = None  # a place in `classes`


def _classes(dice: Dice, fewest: int, most: int) -> list[int]:
    return [dice.whole(0, 10) for _ in range(dice.whole(fewest, most + 1))]


def _sizes(dice: Dice, count: int) -> list[int]:
    return [dice.whole(0, len(SIDES)) for _ in range(count)]


def _any_cast(fewest: int, most: int, dice: Dice) -> _Cast:
    classes = _classes(dice, fewest, most)
    return _Cast(classes, _sizes(dice, len(classes)))


def _largest_cast(dice: Dice) -> _Cast:
    classes = _classes(dice, 2, MOST_DIGITS)
    sizes = [dice.whole(0, 2) for _ in classes]
    largest = dice.whole(0, len(classes))
    sizes[largest] = len(SIDES) - 1
    return _Cast(classes, sizes, largest=largest)


def _others(dice: Dice, asked: int, count: int) -> list[int]:
    return [(asked + dice.whole(1, 10)) % 10 for _ in range(count)]


def _presence_cast(dice: Dice) -> _Cast:
    asked, count = dice.whole(0, 10), dice.whole(1, MOST_DIGITS + 1)
    classes = _others(dice, asked, count)
    if dice.whole(0, 2):
        classes[0] = asked  # the digits' places are drawn later, so the first can be chosen
    return _Cast(classes, _sizes(dice, count), asked)


def _left_cast(dice: Dice) -> _Cast:
    pool, classes = list(range(10)), []
    for _ in range(dice.whole(2, MOST_DIGITS + 1)):
        classes.append(pool.pop(dice.whole(0, len(pool))))
    return _Cast(classes, _sizes(dice, len(classes)))


def _times_cast(dice: Dice) -> _Cast:
    asked, times = dice.whole(0, 10), dice.whole(0, 4)
    count = dice.whole(max(1, times), MOST_DIGITS + 1)
    return _Cast([asked] * times + _others(dice, asked, count - times), _sizes(dice, count), asked)


class Scene(NamedTuple):
    """An image and a question. boxes: tight around the strokes of each digit; centres: of its frame, (y, x)."""

    kind: str
    question: str
    answer: str
    image: np.ndarray  # uint8 [size, size, 3]
    classes: list[int]
    boxes: list[list[int]]
    centres: np.ndarray  # float64 [n, 2]

    def picture(self) -> dict[str, np.ndarray]:
        """The image, and the labels and boxes of MOST_DIGITS digits, padded with -1 and 0."""
        padding = MOST_DIGITS - len(self.classes)
        return {
            "image": self.image,
            "labels": np.array(self.classes + [-1] * padding, np.int32),
            "boxes": np.array(self.boxes + [[0, 0, 0, 0]] * padding, np.float32),
        }


_CASTS: dict[str, Callable[[Dice], _Cast]] = {
    "corner": functools.partial(_any_cast, 2, MOST_DIGITS),
    "largest": _largest_cast,
    "count": functools.partial(_any_cast, 1, MOST_DIGITS),
    "sum": functools.partial(_any_cast, 2, 3),
    "presence": _presence_cast,
    "left": _left_cast,
    "times": _times_cast,
}


def _free(kind: str, corners: np.ndarray, sides: np.ndarray, size: int) -> np.ndarray:
    """Which layouts are good: no two frames too near, and sides clear where they are asked for. bool [layouts].

    corners: float64 [layouts, n, 2], the upper left (y, x) of each frame. sides: float64 [n].
    """
    centres = corners + sides[:, None] / 2
    first, second = np.triu_indices(len(sides), 1)
    apart = np.abs(centres[:, first] - centres[:, second])  # [layouts, pairs, 2]
    good = (apart.max(-1) >= (sides[first] + sides[second]) / 2 + _GAP * size / 96).all(1)
    return good & clear_sides(kind, centres, size)


def clear_sides(kind: str, centres: np.ndarray, size: int) -> np.ndarray:
    """Whether the sides that a kind of question asks about are clear: bool [...] from [..., n, 2]."""
    first, second = np.triu_indices(centres.shape[-2], 1)
    if kind == "left":
        return (np.abs(centres[..., first, 1] - centres[..., second, 1]) >= size / 16).all(-1)
    if kind == "corner":
        off_line = (np.abs(centres - size / 2) >= size / 16).all((-2, -1))
        return off_line & (quarters(centres, size) == 1).any(-1)
    return np.ones(centres.shape[:-2], bool)


def quarters(centres: np.ndarray, size: int) -> np.ndarray:
    """How many digits are in each quarter of the canvas, in the order of CORNERS: [..., 4] from [..., n, 2]."""
    low = centres > size / 2
    place = 2 * low[..., 0] + low[..., 1]
    return (place[..., None] == np.arange(4)).sum(-2)


def _layout(kind: str, sides: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The upper left (y, x) of every frame, drawn uniformly among the good layouts: int64 [n, 2]."""
    while True:
        corners = np.floor(rng.random((_LAYOUTS, len(sides), 2)) * (size - sides[:, None] + 1))
        good = _free(kind, corners, sides, size)
        if good.any():
            return corners[good.argmax()].astype(np.int64)


def article(number: int) -> str:
    return f"an {NUMBERS[number]}" if number == 8 else f"a {NUMBERS[number]}"


def _ask(kind: str, cast: _Cast, centres: np.ndarray, size: int, dice: Dice) -> tuple[str, str]:
    """The question and its answer; centres: float64 [n, 2], (y, x) of the digits' frames."""
    classes = cast.classes
    if kind == "corner":
        alone = np.flatnonzero(quarters(centres, size) == 1)
        corner = alone[dice.whole(0, len(alone))]
        inside = [quarters(centre[None], size)[corner] for centre in centres]
        return f"which digit is {CORNERS[corner]}", str(classes[int(np.argmax(inside))])
    if kind == "largest":
        return "which digit is largest", str(classes[cast.largest])
    if kind == "count":
        return "how many digits are there", str(len(classes))
    if kind == "sum":
        return "what is the sum of the digits", str(sum(classes))
    if kind == "presence":
        return f"is there {article(cast.asked)}", "yes" if cast.asked in classes else "no"
    if kind == "left":
        answer, asked = (classes[place] for place in np.argsort(centres[:, 1])[:2])
        return f"what is left of the {NUMBERS[asked]}", str(answer)
    return f"how many times does {article(cast.asked)} occur", str(classes.count(cast.asked))


@functools.cache
def _sides(size: int) -> tuple[int, ...]:
    """The sides of the frames, in pixels of a canvas of `size`."""
    return tuple(round(side * size / 96) for side in SIDES)


@functools.cache
def _members(split: str, cut: str, sides: tuple[int, ...], pose: int, high: bool) -> list[np.ndarray]:
    """The digits of each class, by their places among the digits of the split.

    With `high`, only those whose strokes, in the largest frame, stand 1.2 times as high as the second smallest frame.
    """
    labels = digits.labels()[digits.split_indices(split, cut)]
    strokes = digits.sprites(split, cut, sides)[(len(sides) - 1) * len(digits.POSES) + pose] > 0.5
    rows = strokes.any(2)  # [n, side]
    heights = rows.shape[1] - rows[:, ::-1].argmax(1) - rows.argmax(1)
    wanted = heights >= 1.2 * sides[1] if high else np.ones(len(labels), bool)
    return [np.flatnonzero((labels == label) & wanted) for label in range(10)]


@dataclasses.dataclass(frozen=True)
class DigitQuestions:
    """A random-access source of questions; number `i` depends on (seed, split, cut, i) and on nothing else."""

    split: str
    size: int
    cut: str
    seed: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        scene = self.scene(index)
        ids = encode_question(scene.question)
        return {
            **scene.picture(),
            "question": ids,
            "question_length": np.int32((ids != PAD).sum()),
            "answer": encode_answer(scene.answer),
            "kind": np.int32(KINDS.index(scene.kind)),
        }

    def scene(self, index: int) -> Scene:
        """The contents of image number `index`, and the question that it was made for."""
        # At most 11 draws for the cast, 5 for the background, 6 a digit, 13 a patch and 19 a fragment.
        split, cut = photographs.SPLITS.index(self.split), digits.CUTS.index(self.cut)
        dice = Dice(self.seed, split, cut, int(index), 1, draws=128)
        kind = KINDS[int(index) % len(KINDS)]
        cast = _CASTS[kind](dice)
        sides = np.array([_sides(self.size)[place] for place in cast.sizes], np.float64)
        corners = _layout(kind, sides, self.size, dice.rng)
        centres = corners + sides[:, None] / 2
        question, answer = _ask(kind, cast, centres, self.size, dice)
        image, boxes = self._draw(cast, corners, dice)
        return Scene(kind, question, answer, image, cast.classes, boxes, centres)

    def _sprites(self, place: int, pose: int) -> np.ndarray:
        """The digits of the split at one size in one pose: float32 [n, side, side]."""
        return digits.sprites(self.split, self.cut, _sides(self.size))[place * len(digits.POSES) + pose]

    def _draw(self, cast: _Cast, corners: np.ndarray, dice: Dice) -> tuple[np.ndarray, list[list[int]]]:
        """The image, uint8 [size, size, 3], and the box [y0, x0, y1, x1] of every digit's strokes."""
        opacities, boxes = [], []
        for digit, (y, x) in enumerate(corners.tolist()):
            pose = dice.whole(0, len(digits.POSES))
            members = _members(self.split, self.cut, _sides(self.size), pose, digit == cast.largest)[
                cast.classes[digit]
            ]
            opacity = self._sprites(cast.sizes[digit], pose)[members[dice.whole(0, len(members))]]
            strokes = opacity > 0.5
            rows, columns = strokes.any(1).nonzero()[0], strokes.any(0).nonzero()[0]
            boxes.append([int(y + rows[0]), int(x + columns[0]), int(y + rows[-1] + 1), int(x + columns[-1] + 1)])
            opacities.append(opacity)
        canvas = background(self.split, self.size, dice)
        self._add_litter(canvas, boxes, dice)
        for opacity, (y, x) in zip(opacities, corners.tolist(), strict=True):
            paint(canvas, opacity, dice.ink(235, 255), y, x)
        return image_of(canvas), boxes

    def _add_litter(self, canvas: np.ndarray, boxes: list[list[int]], dice: Dice) -> None:
        """Small pieces of photographs and dim pieces of digits (under half of the height), clear of every digit."""
        for _ in range(PATCHES):
            height, width = dice.whole(8, 18) * self.size // 96, dice.whole(8, 18) * self.size // 96
            spot = dice.clear_spot(self.size, height, width, *boxes)
            if spot is not None:
                y, x = spot
                piece = photo_window(self.split, self.size, height, width, dice)
                canvas[:, y : y + height, x : x + width] = piece * np.float32(0.6)
        for _ in range(FRAGMENTS):
            ink = self._sprites(dice.whole(0, len(SIDES)), dice.whole(0, len(digits.POSES)))
            sprite = ink[dice.whole(0, len(ink))]
            height, width = round(len(sprite) * dice.real(0.3, 0.45)), round(len(sprite) * dice.real(0.45, 0.75))
            spot = dice.clear_spot(self.size, height, width, *boxes)
            if spot is not None:
                paint(canvas, dice.window(sprite, height, width), dice.ink(80, 150), *spot)


def digit_questions(
    split: str, *, size: int = 96, cut: str = "stratified", seed: int = 0, length: int | None = None
) -> grain.MapDataset:
    """Questions about digit scenes as a Grain data set of arrays; `jtok.data.question_text` turns ids into text.

    image: uint8 [size, size, 3]. question: int32 [8], ids of `VOCABULARY`, padded with 0 at the end; question_length:
    int32 scalar. answer: int32 [2], the answer's id and the end mark. kind: int32 scalar, a place in `KINDS`.
    labels: int32 [4], the classes of the digits, -1 where there are fewer than four. boxes: float32 [4, 4], in the
    same order, [y0, x0, y1, x1] in pixels, end exclusive, tight around the strokes, 0 where there is none.
    `seed` draws other scenes of the same digits; `length` is 1,000,000 for train and 2,000 otherwise.
    Raises UserError for an unknown split or cut, a size under 64, a negative seed, or a length under 1.
    """
    digits.split_indices(split, cut)  # raises on an unknown name
    if size < 64:
        raise UserError(f"A scene of several digits needs a size of at least 64 pixels, not {size}.")
    length = photographs.LENGTHS[split] if length is None else length
    if length < 1 or seed < 0:
        raise UserError(f"Digit questions need length >= 1 and seed >= 0, not length={length} and seed={seed}.")
    return grain.MapDataset.source(DigitQuestions(split, size, cut, seed, length))


def chance_levels(examples: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What answering without looking gets, for every kind of question among the examples, and for "all" of them.

    majority: the accuracy of always giving the commonest answer of that kind; uniform: of drawing one at random from
    the answers that occur for that kind; examples: how many there are. "all" weighs the kinds by their examples.
    Raises UserError when there are no examples.
    """
    answers: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for example in examples:
        answers[KINDS[int(example["kind"])]][decode_answer(example["answer"])] += 1
    if not answers:
        raise UserError("There are no questions to take chance levels from.")
    levels = {}
    for kind in sorted(answers, key=KINDS.index):
        total = answers[kind].total()
        levels[kind] = {
            "majority": max(answers[kind].values()) / total,
            "uniform": 1 / len(answers[kind]),
            "examples": total,
        }
    total = sum(level["examples"] for level in levels.values())
    mean = {
        name: sum(level[name] * level["examples"] for level in levels.values()) / total
        for name in ("majority", "uniform")
    }
    return levels | {"all": mean | {"examples": total}}
