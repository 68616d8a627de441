"""Readers of benchmarks answered in free words: VQAv2 (arXiv:1612.00837), TextVQA (1904.08920), GQA (1902.09506)."""

import pathlib
from typing import Any

import grain.python as grain

from jtok.data.vqa.source import dataset, field, of_kind, read_json, rest, sample
from jtok.errors import UserError

Path = str | pathlib.Path


def vqav2(questions: Path, images: Path, annotations: Path | None = None) -> grain.MapDataset:
    """VQAv2: `v2_OpenEnded_mscoco_*_questions.json` and, but for the test splits, `v2_mscoco_*_annotations.json`.

    images: the folder of COCO_<subtype>_<12 digits>.jpg, the subtype being the `data_subtype` of the questions.
    Samples have the ten `answers`, none without annotations; question_type, answer_type and the image_id are meta.
    Raises UserError for missing or damaged files, missing fields, or a question without an annotation.
    """
    contents = read_json(questions)
    subtype = str(field(contents, "data_subtype", f"'{questions}'"))
    coco = "test2015" if subtype.startswith("test-dev") else subtype  # test-dev asks about the images of the test
    by_question = _annotations(annotations) if annotations is not None else {}
    samples = []
    for place, row in enumerate(of_kind(field(contents, "questions", f"'{questions}'"), list, "questions")):
        where = f"question {place} of '{questions}'"
        id, image = field(row, "question_id", where), field(row, "image_id", where)
        if annotations is not None and id not in by_question:
            raise UserError(f"'{annotations}' has no annotation of question {id}; is it of another split?")
        answers, meta = by_question.get(id, ([], {}))
        path = pathlib.Path(images) / f"COCO_{coco}_{int(image):012d}.jpg"
        text = field(row, "question", where)
        samples.append(sample(id, path, text, answers, {"image_id": image} | meta))
    return dataset(samples, questions)


def _annotations(path: Path) -> dict[Any, tuple[list[str], dict[str, Any]]]:
    """Answers and the kinds of question and answer, by question id."""
    by_question = {}
    for place, row in enumerate(of_kind(field(read_json(path), "annotations", f"'{path}'"), list, "annotations")):
        where = f"annotation {place} of '{path}'"
        answers = [field(answer, "answer", where) for answer in field(row, "answers", where)]
        meta = rest(row, "question_id", "image_id", "answers")
        by_question[field(row, "question_id", where)] = (answers, meta)
    return by_question


def textvqa(questions: Path, images: Path) -> grain.MapDataset:
    """TextVQA: `TextVQA_0.5.1_*.json`, with its questions under "data".

    images: the folder of <image_id>.jpg. Samples have the ten `answers`, none in the test split; the rest of a
    record (image_classes, set_name, ...) is meta.
    Raises UserError for a missing or damaged file, or missing fields.
    """
    samples = []
    for place, row in enumerate(of_kind(field(read_json(questions), "data", f"'{questions}'"), list, "data")):
        where = f"question {place} of '{questions}'"
        image = pathlib.Path(images) / f"{field(row, 'image_id', where)}.jpg"
        text, id = field(row, "question", where), field(row, "question_id", where)
        meta = rest(row, "question", "question_id", "answers")
        samples.append(sample(id, image, text, list(row.get("answers", [])), meta))
    return dataset(samples, questions)


def gqa(questions: Path, images: Path) -> grain.MapDataset:
    """GQA: `*_balanced_questions.json` (or `*_all_questions.json`), an object from question id to question.

    images: the folder of <imageId>.jpg. Samples have one answer, none in the test split; the rest of a record
    (fullAnswer, types, groups, semantic, entailed, ...) is meta.
    Raises UserError for a missing or damaged file, or missing fields.
    """
    samples = []
    for id, row in read_json(questions).items():
        where = f"question {id} of '{questions}'"
        image = pathlib.Path(images) / f"{field(of_kind(row, dict, where), 'imageId', where)}.jpg"
        answers = [row["answer"]] if "answer" in row else []
        meta = rest(row, "question", "answer")
        samples.append(sample(id, image, field(row, "question", where), answers, meta))
    return dataset(samples, questions)
