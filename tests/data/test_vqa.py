"""Every reader on small files laid out, field for field, as the published ones."""

import base64
import csv
import io
import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest

from jtok.data import vqa
from jtok.errors import UserError


def picture(shade: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    PIL.Image.new("L" if kind == "PNG" else "RGB", (6, 4), shade if kind == "PNG" else (shade,) * 3).save(file, kind)
    return file.getvalue()


def put(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        path.write_text(contents if isinstance(contents, str) else json.dumps(contents), encoding="utf-8")
    return path


def shade(example) -> int:
    image = example["image"]
    assert image.mode == "RGB" and image.size == (6, 4)
    return int(np.asarray(image)[0, 0, 0])


VQA_QUESTIONS = {
    "info": {"version": "2.0"},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "license": {},
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
        {"image_id": 393225, "question": "What is the soup in?", "question_id": 393225001},
    ],
}
VQA_ANNOTATIONS = {
    "info": {},
    "license": {},
    "data_type": "mscoco",
    "data_subtype": "val2014",
    "annotations": [
        {
            "question_type": "none of the above",
            "multiple_choice_answer": answer,
            "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)],
            "image_id": question["image_id"],
            "answer_type": "other",
            "question_id": question["question_id"],
        }
        for question, answer in zip(VQA_QUESTIONS["questions"], ("down", "bowl"), strict=True)
    ],
}


def test_vqav2(tmp_path):
    questions = put(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", VQA_QUESTIONS)
    annotations = put(tmp_path / "v2_mscoco_val2014_annotations.json", VQA_ANNOTATIONS)
    put(tmp_path / "val2014" / "COCO_val2014_000000393225.jpg", picture(80, "JPEG"))
    data = vqa.vqav2(questions, tmp_path / "val2014", annotations)
    assert len(data) == 2 and tuple(data[1]) == vqa.KEYS
    example = data[1]
    assert example["id"] == "393225001" and example["question"] == "What is the soup in?"
    assert example["answers"] == ["bowl"] * 10 and example["choices"] == [] and abs(shade(example) - 80) <= 2
    assert example["meta"]["answer_type"] == "other" and example["meta"]["image_id"] == 393225
    with pytest.raises(UserError, match="image of question 262148000, .*COCO_val2014_000000262148.jpg', is missing"):
        data[0]


def test_vqav2_test_splits_have_no_answers_and_share_their_images(tmp_path):
    questions = put(tmp_path / "questions.json", VQA_QUESTIONS | {"data_subtype": "test-dev2015"})
    put(tmp_path / "COCO_test2015_000000262148.jpg", picture(9, "JPEG"))
    assert vqa.vqav2(questions, tmp_path)[0]["answers"] == []


def test_textvqa(tmp_path):
    row = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Cassette deck", "Camera"],
        "flickr_original_url": "https://example.org/4.jpg",
        "flickr_300k_url": "https://example.org/4z.jpg",
        "image_width": 1024,
        "image_height": 664,
        "answers": ["nous les gosses", "dakota", "clos culombu", *["dakota digital"] * 7],
        "question_tokens": ["what", "is", "the", "brand", "of", "this", "camera"],
        "question_id": 34602,
        "set_name": "val",
    }
    file = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": [row]}
    put(tmp_path / "train_images" / "003a8ae2ef43b901.jpg", picture(40, "JPEG"))
    example = vqa.textvqa(put(tmp_path / "TextVQA_0.5.1_val.json", file), tmp_path / "train_images")[0]
    assert example["id"] == "34602" and example["answers"] == row["answers"] and example["question"] == row["question"]
    assert example["meta"]["image_classes"] == ["Cassette deck", "Camera"] and abs(shade(example) - 40) <= 2
    del row["answers"]
    assert vqa.textvqa(put(tmp_path / "test.json", file), tmp_path / "train_images")[0]["answers"] == []


def test_gqa(tmp_path):
    row = {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "scene"}],
        "entailed": [],
        "equivalent": ["20602949"],
        "question": "Is it overcast?",
        "imageId": "n161313",
        "isBalanced": True,
        "groups": {"global": None, "local": "13-weather"},
        "answer": "no",
        "semanticStr": "select: scene->verify weather: overcast [0]",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear.",
    }
    put(tmp_path / "images" / "n161313.jpg", picture(60, "JPEG"))
    file = put(tmp_path / "testdev_balanced_questions.json", {"20602949": row})
    example = vqa.gqa(file, tmp_path / "images")[0]
    assert (example["id"], example["question"], example["answers"]) == ("20602949", "Is it overcast?", ["no"])
    assert example["meta"]["types"]["structural"] == "verify" and abs(shade(example) - 60) <= 2


POPE_LINES = (
    '{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?", '
    '"label": "yes"}\n'
    '{"question_id": 2, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a car in the image?", '
    '"label": "no"}\n'
)


def test_pope(tmp_path):
    put(tmp_path / "COCO_val2014_000000310196.jpg", picture(20, "JPEG"))
    data = vqa.pope(put(tmp_path / "coco_pope_random.json", POPE_LINES), tmp_path)
    assert [data[n]["answers"] for n in range(2)] == [["yes"], ["no"]] and data[1]["id"] == "2"
    assert data[1]["question"] == "Is there a car in the image?" and abs(shade(data[1]) - 20) <= 2


def test_mme_in_both_of_its_layouts(tmp_path):
    put(tmp_path / "existence" / "000000006040.txt", "Is there a train?\tYes\nIs there a couch?\tNo\n")
    put(tmp_path / "existence" / "000000006040.jpg", picture(30, "JPEG"))
    put(tmp_path / "artwork" / "questions_answers_YN" / "10002.txt", "Is it in a museum?\tNo\r\nIs it old?\tYes\r\n")
    put(tmp_path / "artwork" / "images" / "10002.png", picture(90))
    put(tmp_path / "eval_tool" / "notes.txt", "not a subtask")
    data = vqa.mme(tmp_path)
    examples = [data[n] for n in range(len(data))]
    assert [example["meta"]["subtask"] for example in examples] == ["existence"] * 2 + ["artwork"] * 2
    assert [example["answers"][0] for example in examples] == ["yes", "no", "no", "yes"]
    assert examples[2]["question"] == "Is it in a museum?" and shade(examples[2]) == 90
    assert examples[2]["meta"]["pair"] == examples[3]["meta"]["pair"] == "10002.png"
    assert len({example["id"] for example in examples}) == 4


PROBLEMS = {
    "4": {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona", "Oklahoma"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "topic": "geography",
        "category": "Geography",
        "skill": "Read a map: cardinal directions",
        "lecture": "Maps have four cardinal directions.",
        "solution": "To find the answer, look at the compass rose.",
        "split": "test",
    },
    "5": {"question": "Which is a verb?", "choices": ["run", "red"], "answer": 1, "hint": "h", "image": None},
}


def test_scienceqa(tmp_path):
    put(tmp_path / "problems.json", PROBLEMS)
    put(tmp_path / "pid_splits.json", {"train": [], "test": ["4", "5"], "minitest": ["4"]})
    put(tmp_path / "images" / "test" / "4" / "image.png", picture(70))
    data = vqa.scienceqa(tmp_path, "test")
    assert len(data) == 2 and len(vqa.scienceqa(tmp_path, with_image_only=True)) == 1
    assert data[0]["answers"] == ["A"] and data[0]["choices"][2] == "Arizona" and shade(data[0]) == 70
    assert data[1]["answers"] == ["B"] and data[1]["image"] is None and data[1]["meta"]["hint"] == "h"
    # A problem lies under its own split, also when it is asked for through another.
    assert shade(vqa.scienceqa(tmp_path, "minitest")[0]) == 70
    with pytest.raises(UserError, match="no split 'tests'; it has train, test"):
        vqa.scienceqa(tmp_path, "tests")
    with pytest.raises(UserError, match="holds no questions"):
        vqa.scienceqa(tmp_path, "train")


def test_scienceqa_parquet(tmp_path):
    rows = [dict(PROBLEMS["4"], image={"bytes": picture(70), "path": "image.png"}), dict(PROBLEMS["5"])]
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("question", pa.string()),
            ("choices", pa.list_(pa.string())),
            ("answer", pa.int8()),
            ("hint", pa.string()),
            ("subject", pa.string()),
        ]
    )
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "test.parquet")
    data = vqa.scienceqa_parquet(tmp_path / "test.parquet")
    assert len(data) == 2 and len(vqa.scienceqa_parquet(tmp_path / "test.parquet", with_image_only=True)) == 1
    assert data[0]["answers"] == ["A"] and shade(data[0]) == 70 and data[0]["meta"]["subject"] == "social science"
    assert data[1]["answers"] == ["B"] and data[1]["image"] is None
    with pytest.raises(UserError, match="not a whole Parquet file"):
        vqa.scienceqa_parquet(put(tmp_path / "cut.parquet", b"PAR1"))


COLUMNS = "index question hint A B C D answer category image source l2-category comment split".split()


def write_mmbench(path, rows, columns=COLUMNS):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def mmbench_rows():
    common = {"category": "ocr", "l2-category": "finegrained_perception", "split": "dev", "source": "s", "comment": ""}
    first = {
        "index": 241,
        "question": "What is it?\nLook.",
        "A": "cat",
        "B": 'a "dog"',
        "C": "None",
        "D": "",
        "answer": "C",
    }
    second = {"index": 252, "question": "Odd?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B", "hint": "count"}
    image = base64.b64encode(picture(50)).decode()
    assert len(image) > 64
    return [common | first | {"image": image, "hint": ""}, common | second | {"image": "241"}]


def test_mmbench_asks_once_for_every_rotation_of_the_choices(tmp_path):
    data = vqa.mmbench(write_mmbench(tmp_path / "mmbench_dev_20230712.tsv", mmbench_rows()))
    examples = [data[n] for n in range(len(data))]
    assert len(examples) == 3 + 4 and {shade(example) for example in examples} == {50}
    assert [example["choices"] for example in examples[:3]] == [
        ["cat", 'a "dog"', "None"],
        ['a "dog"', "None", "cat"],
        ["None", "cat", 'a "dog"'],
    ]
    for example in examples:
        right = {"241": "None", "252": "2"}[example["meta"]["index"]]
        assert example["choices"]["ABCD".index(example["answers"][0])] == right
    assert examples[0]["question"] == "What is it?\nLook." and examples[3]["meta"]["hint"] == "count"
    assert [example["meta"]["rotation"] for example in examples] == [0, 1, 2, 0, 1, 2, 3]
    assert len({example["id"] for example in examples}) == 7
    assert len(vqa.mmbench(tmp_path / "mmbench_dev_20230712.tsv", circular=False)) == 2


def test_mmbench_test_split_has_no_answers(tmp_path):
    columns = [name for name in COLUMNS if name != "answer"]
    data = vqa.mmbench(write_mmbench(tmp_path / "test.tsv", mmbench_rows(), columns))
    assert data[0]["answers"] == [] and len(data[0]["choices"]) == 3


def without(rows, name):
    return [{key: value for key, value in row.items() if key != name} for row in rows]


def bad_mmbench(path, **change):
    return vqa.mmbench(write_mmbench(path / "bad.tsv", [mmbench_rows()[0] | change]))


@pytest.mark.parametrize(
    "read, words",
    [
        (lambda p: vqa.gqa(p / "none.json", p), "There is no file .*none.json"),
        (lambda p: vqa.gqa(put(p / "a.json", '{"1": '), p), "not a whole JSON file"),
        (lambda p: vqa.gqa(put(p / "a.json", []), p), "should be a dict, not a list"),
        (
            lambda p: vqa.gqa(put(p / "a.json", {"7": {"question": "q"}}), p),
            "no 'imageId'; it has question",
        ),
        (lambda p: vqa.gqa(put(p / "a.json", {}), p), "holds no questions"),
        (lambda p: vqa.gqa(put(p / "a.json", b"\xff\xfe\x00"), p), "cannot be read as a text file"),
        (lambda p: vqa.textvqa(put(p / "a.json", {"questions": []}), p), "no 'data'; it has questions"),
        (lambda p: vqa.vqav2(put(p / "a.json", {"questions": []}), p), "no 'data_subtype'"),
        (
            lambda p: vqa.vqav2(put(p / "a.json", VQA_QUESTIONS), p, put(p / "b.json", {"annotations": []})),
            "no annotation of question 262148000; is it of another split",
        ),
        (lambda p: vqa.pope(put(p / "a.json", POPE_LINES + "{"), p), "Line 3 of .* is not JSON"),
        (
            lambda p: vqa.pope(put(p / "a.json", POPE_LINES.replace('"no"', '"maybe"')), p),
            "question 1 .*'maybe'",
        ),
        (lambda p: vqa.mme(p / "none"), "no data directory"),
        (lambda p: vqa.mme(put(p / "x" / "a.txt", "q\tYes").parent.parent), "none of the folders of MME"),
        (lambda p: vqa.mme(put(p / "count" / "a.txt", "q\tYes").parents[1]), "two lines of a question, a tab"),
        (lambda p: vqa.mme(put(p / "count" / "a.txt", "q\tYes\nr\tNo").parents[1]), "no image for .*a.txt"),
        (lambda p: vqa.scienceqa(p), "no file .*problems.json"),
        (lambda p: bad_mmbench(p, answer="D"), "answer of row 0 .*is 'D'; it should be one of A, B, C"),
        (lambda p: bad_mmbench(p, image="§" * 70), "row 0 .*not base64"),
        (lambda p: vqa.mmbench(put(p / "a.tsv", "index\tquestion\n1\tq\n")), "no column 'image'"),
        (lambda p: vqa.mmbench(put(p / "a.tsv", "index\tquestion\n1\n")), "not a whole TSV file"),
    ],
)
def test_bad_files(tmp_path, read, words):
    with pytest.raises(UserError, match=words):
        read(tmp_path)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    put(tmp_path / "COCO_val2014_000000310196.jpg", picture(20, "JPEG")[:100])
    data = vqa.pope(put(tmp_path / "coco_pope_random.json", POPE_LINES), tmp_path)
    with pytest.raises(UserError, match="image of question 1 cannot be decoded from '.*310196.jpg'"):
        data[0]
