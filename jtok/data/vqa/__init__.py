"""Readers of the published files of visual question answering benchmarks.

Every reader returns a random-access Grain data set of {"id": str, "image": PIL RGB image or None, "question": str,
"answers": list of str, "choices": list of str, "meta": dict}. Images are read when a question is asked for. Answers are
empty in splits without them; for questions with choices they are the letter of the right one.
`jtok.evaluation.vqa.scores` scores what a model answers.
"""

from jtok.data.vqa.multiple_choice import mmbench, scienceqa, scienceqa_parquet
from jtok.data.vqa.open_ended import gqa, textvqa, vqav2
from jtok.data.vqa.source import KEYS
from jtok.data.vqa.yes_no import MME_COGNITION, MME_PERCEPTION, mme, pope

__all__ = [
    "KEYS",
    "MME_COGNITION",
    "MME_PERCEPTION",
    "gqa",
    "mmbench",
    "mme",
    "pope",
    "scienceqa",
    "scienceqa_parquet",
    "textvqa",
    "vqav2",
]
