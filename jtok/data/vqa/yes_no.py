"""Readers of benchmarks answered with yes or no: POPE (arXiv:2305.10355) and MME (2306.13394)."""

import pathlib

import grain.python as grain

from jtok.data.files import existing_directory
from jtok.data.vqa.source import dataset, field, read_json_lines, read_text, rest, sample
from jtok.errors import UserError

Path = str | pathlib.Path
MME_PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def pope(questions: Path, images: Path) -> grain.MapDataset:
    """POPE: `coco_pope_random.json` and its like, one object a line: question_id, image, text and label.

    images: the folder that holds the files named by `image` (COCO val2014). Samples have one answer, yes or no.
    Raises UserError for a missing or damaged file, missing fields, or a label that is neither yes nor no.
    """
    samples = []
    for place, row in enumerate(read_json_lines(questions)):
        where = f"question {place} of '{questions}'"
        label = _yes_or_no(field(row, "label", where), where)
        image = pathlib.Path(images) / field(row, "image", where)
        id, text = field(row, "question_id", where), field(row, "text", where)
        samples.append(sample(id, image, text, [label], rest(row, "question_id", "text")))
    return dataset(samples, questions)


def _yes_or_no(label: str, where: str) -> str:
    answer = str(label).strip().lower()
    if answer not in ("yes", "no"):
        raise UserError(f"The label of {where} is '{label}'; it should be yes or no.")
    return answer


def mme(path: Path) -> grain.MapDataset:
    """MME: the folder `MME_Benchmark_release_version`, one folder a subtask.

    A subtask has a text file for every image, of the same name, with two lines "question<tab>Yes or No"; images and
    text files lie side by side, or in `images` and `questions_answers_YN`. Subtasks are read in the order of the
    official score, those that are not there left out. Samples are in pairs; meta has the `subtask` and the `pair`,
    the name of the image within it.
    Raises UserError for a missing folder, no subtask in it, a text file without its image, or not of two such lines.
    """
    path = existing_directory(path)
    samples = []
    for subtask in (*MME_PERCEPTION, *MME_COGNITION):
        texts, images = path / subtask / "questions_answers_YN", path / subtask / "images"
        texts, images = (texts, images) if texts.is_dir() else (path / subtask, path / subtask)
        for text in sorted(texts.glob("*.txt")):
            samples += _mme_pair(subtask, text, images)
    if not samples:
        raise UserError(f"'{path}' has none of the folders of MME ({MME_PERCEPTION[0]}, {MME_PERCEPTION[1]}, ...).")
    return dataset(samples, path)


def _mme_pair(subtask: str, text: pathlib.Path, images: pathlib.Path) -> list[dict]:
    lines = [line.split("\t") for line in read_text(text).splitlines() if line.strip()]
    if len(lines) != 2 or any(len(line) != 2 for line in lines):
        raise UserError(f"'{text}' should have two lines of a question, a tab and an answer.")
    candidates = [images / f"{text.stem}{end}" for end in (".jpg", ".png", ".jpeg")]
    image = next((candidate for candidate in candidates if candidate.is_file()), None)
    if image is None:
        raise UserError(f"There is no image for '{text}' in '{images}'.")
    return [
        sample(
            f"{subtask}/{text.stem}/{place}",
            image,
            question,
            [_yes_or_no(answer, f"line {place + 1} of '{text}'")],
            {"subtask": subtask, "pair": image.name},
        )
        for place, (question, answer) in enumerate(lines)
    ]
