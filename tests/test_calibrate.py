"""`jtok calibrate` and `--plan` as a user meets them, on the model that comes with jtok."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from jtok import cli
from jtok.commands.plan_file import method_of
from jtok.errors import UserError


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """What two samples give for FitPrune."""
    path = tmp_path_factory.mktemp("plans") / "fitprune.json"
    argv = ["calibrate", "--method=fitprune", "--samples=2", "--option=reduction=40", f"--out={path}"]
    assert cli.main(argv) == 0
    return path


def flags(path, method="none", option=()):
    return SimpleNamespace(plan=str(path), method=method, option=list(option))


def test_the_file_says_what_was_done(file):
    content = json.loads(file.read_text())
    assert content["method"] == "fitprune" and content["model"] == "shipped"
    assert content["calibration"] == {"reduction": 40}
    assert content["data"] == {"questions": "digit scenes", "split": "train", "samples": 2}
    removals = content["options"]["removals"]
    assert len(removals) == 4 and 0 < sum(removals) < 81
    assert [p.name for p in file.parent.iterdir()] == [file.name]


@pytest.mark.slow
def test_evaluate_reads_it(file, capsys):
    argv = ["evaluate", "--model=shipped", "--images=8", f"--plan={file}", "--json"]
    assert cli.main(argv) == 0
    record = json.loads(capsys.readouterr().out)
    removals = json.loads(file.read_text())["options"]["removals"]
    # a layer attends with all the tokens that enter it
    assert record["tokens_per_block"] == [81 - sum(removals[:i]) for i in range(4)]
    assert record["method"] == "fitprune" and record["total"] == 8


def test_flags_are_read_with_the_file(file):
    options = json.loads(file.read_text())["options"]
    assert method_of(flags(file)) == ("fitprune", options)
    assert method_of(flags(file, "fitprune", ["removals=(1,)"])) == ("fitprune", {"removals": (1,)})
    joined = {"fitprune.removals": options["removals"], "layer": 1}
    assert method_of(flags(file, "fastv+fitprune", ["layer=1"])) == ("fastv+fitprune", joined)
    assert method_of(flags("", "fastv", ["layer=1"])) == ("fastv", {"layer": 1})


def test_a_file_of_another_method_and_none_are_refused(file, tmp_path):
    with pytest.raises(UserError, match="for fitprune, not for vtw"):
        method_of(flags(file, "vtw"))
    with pytest.raises(UserError, match="cannot read the plan"):
        method_of(flags(tmp_path / "none.json"))
    for text in ("{", "[1]", '{"method": "vtw"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match="is not a plan"):
            method_of(flags(tmp_path / "bad.json"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--method=fastv"], "fastv has nothing to calibrate; methods that do: "),
        (["--method=vtw", "--option=eat=1"], "no option 'eat'; it takes eta, first"),
        (["--method=vtww"], "did you mean vtw"),
    ],
)
def test_bad_input_gets_one_sentence(argv, words, capsys, tmp_path):
    assert cli.main(["calibrate", *argv, f"--out={tmp_path / 'x.json'}"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
