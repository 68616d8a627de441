"""The subject of configs/vlm/digit_scenes.py: a vision-language model that answers questions about digit scenes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from rich.table import Table

from jtok.data.questions import KINDS
from jtok.evaluation.sweeps.pareto import table
from jtok.evaluation.sweeps.sweep import Cell, Record
from jtok.evaluation.vqa.questions import Questions, held_out_questions, run_cell
from jtok.evaluation.vqa.scores import down_sample_filter
from jtok.models.vlm.model import VLM, load
from jtok.plan import Plan
from jtok.target import Target
from jtok.training.weights import load_reducer

#: The method that a question needs more than.
DOWN = "downsample-image"


class QuestionReader:
    """A model in a sweep.

    config.sweep: `questions` (held out), `batch`, and `kinds_keep` (the ratio at which accuracy is split by kind).
    """

    def __init__(self, model: VLM, config: ConfigDict):
        self.model, self.config = model, config

    @property
    def target(self) -> Target:
        return self.model.config.target()

    @functools.cached_property
    def questions(self) -> Questions:
        """The held-out questions."""
        s, d = self.config.sweep, self.config.data
        how = {"batch": s.batch, "size": self.model.config.tower.image, "cut": d.cut}
        return held_out_questions(self.model, s.questions, **how)

    def measure(self, cell: Cell, single: bool) -> Record:
        return run_cell(self.model, cell, self.questions, single=single)

    def trained(self, plan: Plan, directory: Path) -> dict[str, Any]:
        # m3 teaches the model's own projector, so that the model alone has changed
        learned = load_reducer(directory / "reducer.safetensors", plan) if plan.params() else {}
        return {"model": load(directory / "model").params, "plan": learned}

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """Every kind of question at one ratio, the level of chance below."""
        keep = self.config.sweep.kinds_keep
        rows = [kind_row(r["method"], r) for r in records if r["method"] == "none" or r["keep"] == keep]
        rows.append(chance_row(self.questions.chance))
        tables = [table(rows, title=f"accuracy by kind of question at keep {keep:g}")]
        if any(r["method"] == DOWN for r in records):
            title = (
                "accuracy on questions that the whole image answers, and a down-sampled one of as many tokens does not"
            )
            tables.append(table(detail_rows(records), title=title))
        return tables

    def pictures(self, records: Sequence[Record], cells: Sequence[Cell]) -> list[tuple[str, Any]]:
        from jtok.viz.kinds import draw_kinds

        chance = {kind: level["majority"] for kind, level in self.questions.chance.items()}
        return [("accuracy against visual tokens by kind of question", draw_kinds(records, chance))]


def detail_rows(records: Sequence[Record]) -> list[Record]:
    """Every method by ratio, on the questions for which down-sampling the image to that ratio does not do (their number
    in the first line). See `jtok.evaluation.vqa.scores.down_sample_filter`."""
    whole = next(r for r in records if r["method"] == "none")
    down = {r["keep"]: r for r in records if r["method"] == DOWN}
    hard = {k: down_sample_filter(_scores(whole), _scores(r)).hard for k, r in sorted(down.items(), reverse=True)}
    rows: dict[str, Record] = {"": {"method": "questions"} | {f"{k:.2g}": str(int(h.sum())) for k, h in hard.items()}}
    for r in records:
        if r["method"] not in ("none", DOWN) and hard.get(r["keep"], np.zeros(1)).any():
            row = rows.setdefault(r["method"], {"method": r["method"]})
            row[f"{r['keep']:.2g}"] = f"{100 * _scores(r)[hard[r['keep']]].mean():.1f}"
    return list(rows.values())


def _scores(record: Record) -> np.ndarray:
    return np.array([int(c) for c in record["answers"]], np.float64)


def kind_row(name: str, record: Record) -> Record:
    """One line of a table: accuracy in all and of every kind."""
    kinds = {kind: f"{100 * record['kinds'][kind]:.1f}" for kind in KINDS}
    return {"method": name, "tokens": record["tokens_end"], "all": f"{100 * record['accuracy']:.1f}", **kinds}


def chance_row(chance: Mapping[str, Mapping[str, float]]) -> Record:
    """The line of always giving the commonest answer of each kind."""
    return {"method": "chance", **{kind: f"{100 * chance[kind]['majority']:.1f}" for kind in ("all", *KINDS)}}
