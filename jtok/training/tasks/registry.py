"""The tasks that `config.task` can name."""

from __future__ import annotations

import importlib

import ml_collections

from jtok.errors import UserError
from jtok.training.task import Task

#: Name of a task -> its module in `jtok.training.tasks`, and its class there.
TASKS = {
    "classify": ("classify", "Classify"),
    "answer_questions": ("answer_questions", "AnswerQuestions"),
    "tokenize_images": ("tokenize_images", "TokenizeImages"),
    "predict_codes": ("predict_codes", "PredictCodes"),
    "flow_tokenizer": ("flow_tokenizer", "FlowTokenizer"),
    "recurrent_tokenizer": ("recurrent_tokenizer", "RecurrentTokenizer"),
    "single_pass_tokenizer": ("single_pass_tokenizer", "SinglePassTokenizer"),
}
TOKENIZERS = ("tokenize_images", "predict_codes", "flow_tokenizer", "recurrent_tokenizer", "single_pass_tokenizer")


def make_task(config: ml_collections.ConfigDict) -> Task:
    """The task of a config. Raises UserError for an unknown name."""
    if config.get("task") not in TASKS:
        raise UserError(f"config.task is '{config.get('task')}'; jtok trains {', '.join(map(repr, TASKS))}.")
    module, name = TASKS[config.task]
    return getattr(importlib.import_module(f"jtok.training.tasks.{module}"), name)(config)
