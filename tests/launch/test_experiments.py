"""The experiments that come with jtok: their units are what their commands take, in both settings, and reports of few
units are made."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from jtok.evaluation.patterns.record_patterns import Pattern, save_patterns
from jtok.launch.experiment import read_experiment
from jtok.launch.units import check_flags, make_units

FILES = ("vit_pareto", "vlm_pareto", "tokenizer_rate_distortion", "which_tokens")
ROOT = Path(__file__).resolve().parents[2]


def read(name):
    return runpy.run_path(str(ROOT / "experiments" / f"{name}.py"))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("small", [True, False])
def test_commands_take_what_the_sweep_gives_them(name, small, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = read(name)
    experiment = read_experiment(file, small=small)
    units = make_units(experiment.sweep(), experiment.command, experiment.config, "runs/x", output=experiment.output)
    assert units and experiment.question.endswith("?")
    check_flags(units)


def pattern(method, family, keep, shift):
    """One site, on a 4 x 4 grid; pruners keep half of the patches."""
    dice = np.random.default_rng(shift)
    patches = np.arange(16)
    if family == "vit-merge":
        owner = np.stack([dice.permutation(patches) // 2 for _ in range(12)])
    else:
        owner = np.stack([np.where(dice.permutation(patches) < 8, patches, -1) for _ in range(12)])
    feature, right = dice.normal(size=(12, 4)).astype(np.float32), dice.random(12) < 0.5
    sites = () if method == "none" else ("tower.block.1.output",)
    return Pattern(method, family, keep, sites, (4, 4), 3, owner[None].astype(np.int16)[: len(sites)], feature, right)


def test_which_tokens_reports_on_what_is_done(tmp_path):
    methods = {"vit_none": ("none", "none", 1.0), "vit_topk": ("topk", "vit-prune", 0.5)}
    methods |= {"vit_random": ("random", "baseline", 0.5), "vlm_random": ("random", "baseline", 0.25)}
    for i, (name, fields) in enumerate(methods.items()):
        (tmp_path / name).mkdir()
        save_patterns(tmp_path / name / "patterns.npz", [pattern(*fields, i)])
    report = read("which_tokens")["report"]({name: tmp_path / name for name in methods})
    assert report.figure is not None
    (row,) = report.tables["ViT: kept sets at keep 0.5, intersection over union"]
    assert row["method"] == "topk" and 0 < row["random"] < 1
    claims = {row["measured as"]: row["measured"] for row in report.tables["claimed by the paper"]}
    assert claims["rank of topk by accuracy, of 2 methods"] in (1, 2) and claims["needs a second backbone"] is None
    assert claims["Spearman of gap and v-measure (negative: they do)"] is None
    report.write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["tables"]
