"""The command line as a user meets it: what it prints, and one sentence with exit code 2 for bad input."""

from __future__ import annotations

import json

import pytest

from jtok import cli
from jtok.methods import catalogue
from jtok.tokenizers.registry import tokenizers


def run(capsys, *argv: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    code = cli.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_names_every_method(capsys):
    code, out, _ = run(capsys, "list", "--json")
    listed = json.loads(out)
    assert code == 0
    assert [row["name"] for row in listed["methods"]] == list(catalogue.methods())
    assert all(row["paper"] and row["idea"] and row["site"] for row in listed["methods"])
    assert [row["name"] for row in listed["tokenizers"]] == list(tokenizers())
    by_name = {row["name"]: row for row in listed["tokenizers"]}
    assert by_name["flextok"]["base"] == "vae" and by_name["one-d-piece"]["kind"] == "titok"


def test_list_as_a_table(capsys):
    code, out, _ = run(capsys, "list", "--family=baseline")
    assert code == 0 and "random" in out and "tome" not in out and "titok" not in out
    code, out, _ = run(capsys, "list", "--family=tokenizer")
    assert code == 0 and "one-d-piece" in out and "any prefix is a code" in out and "topk" not in out


def test_plan_follows_tokens_and_counts_flops(capsys):
    code, out, _ = run(capsys, "plan", "--method=topk", "--keep=0.5", "--model=deit_ti16", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["rows"][0]["in"] == 196 and plan["rows"][-1]["out"] == 98
    assert plan["gflops"] < plan["gflops_unreduced"]
    total = sum(row["gflops"] for row in plan["rows"])
    assert total == pytest.approx(plan["gflops"], rel=0.01)
    assert [row["in"] for row in plan["rows"][1:]] == [row["out"] for row in plan["rows"][:-1]]


def test_plan_as_a_table(capsys):
    code, out, _ = run(capsys, "plan", "--method=downsample-image", "--model=scenes")
    assert code == 0 and "input" in out and "unreduced" in out


def test_plan_of_joined_methods_in_a_vision_language_model(capsys):
    argv = ["plan", "--method=visionzip+fastv", "--option=fastv.layer=2", "--model=shipped", "--json"]
    code, out, err = run(capsys, *argv)
    plan = json.loads(out)
    reduced = {row["where"]: (row["in"], row["out"]) for row in plan["rows"] if row["reducer"]}
    assert code == 0 and not err
    assert reduced == {"tower.output": (81, 40), "llm.layer.2.input": (40, 20)}
    assert plan["keep"] is None and plan["asked"] == "keep 0.5" and plan["slots"] == {"positions": "renumber"}


def test_counts_that_depend_on_the_image_are_caps(capsys):
    code, out, _ = run(capsys, "plan", "--method=ats", "--model=scenes", "--option=tokens=16")
    assert code == 0 and "ats, tokens 16" in out and "at most 16" in out and "keep" not in out
    code, out, _ = run(capsys, "evaluate", "--method=ats", "--images=8", "--json")
    record = json.loads(out)
    assert code == 0 and record["adaptive"] and 0 < record["tokens"] < record["cap"] == 32


def test_an_untrained_method_is_told_of(capsys):
    code, out, err = run(capsys, "plan", "--method=sinkhorn", "--model=scenes", "--json")
    assert code == 0 and json.loads(out)["trained"] is False
    assert err.count("\n") == 1 and "sinkhorn" in err and "random" in err
    assert not run(capsys, "plan", "--method=tome", "--model=scenes", "--json")[2]


BAD = {
    "two ways to say how many": (["plan", "--method=tome", "--keep=0.5", "--option=r=3"], ["keep=0.5", "r=3"]),
    "a method in a tower that needs a language model": (["plan", "--method=topk+fastv"], ["fastv", "language model"]),
    "an option of a method that is not asked": (["plan", "--method=tome", "--option=fastv.layer=2"], ["fastv"]),
    "unknown method": (["plan", "--method=tomee"], ["tomee", "tome"]),
    "keep of zero": (["plan", "--method=tome", "--keep=0"], ["keep ratio", "0.0"]),
    "keep above one": (["evaluate", "--method=tome", "--keep=1.2"], ["1.2"]),
    "option that is not there": (["plan", "--method=topk", "--option=ratez=3"], ["'ratez'", "rates"]),
    "option without a value": (["plan", "--method=tome", "--option=r"], ["name=value"]),
    "r too large": (["plan", "--method=tome", "--option=r=150"], ["150", "98"]),
    "unknown model": (["plan", "--model=deit_s14"], ["deit_s14", "deit_s16"]),
    "image that patches do not divide": (["plan", "--method=tome", "--image=225"], ["225", "224"]),
    "class attention without a class token": (["plan", "--method=topk", "--model=siglip_b16"], ["class token", "tome"]),
    "unreadable image": (["show", "--image=no/such.png"], ["no/such.png"]),
    "reducer for a plan that learns nothing": (["evaluate", "--method=tome", "--reducer=x.safetensors"], ["nothing"]),
    "unknown config field": (
        ["train", "--config=configs/vit/digit_scenes.py", "--config.train.stepz=3", "--workdir=x"],
        ["stepz", "steps"],
    ),
    "weights that are missing": (
        ["evaluate", "--config=configs/vit/digit_scenes.py", "--config.weights=no/such.safetensors"],
        ["no/such.safetensors"],
    ),
    "weights that are a pickle": (
        ["evaluate", "--config=configs/vit/digit_scenes.py", "--config.weights=model.pth"],
        ["model.pth"],
    ),
    "data that are missing": (
        ["train", "--config=configs/vit/imagenet.py", "--config.data.options.path=no/such", "--workdir={tmp}"],
        ["no/such"],
    ),
    "sweep of an unknown method": (
        ["sweep", "--config=configs/vit/sweep.py:demo", "--config.sweep.methods=('tomee',)", "--workdir={tmp}"],
        ["tomee"],
    ),
    "sweep without a section": (["sweep", "--config=configs/vit/digit_scenes.py", "--workdir={tmp}"], ["sweep"]),
    "benchmark of an op that is not there": (["bench", "kernels", "--ops=sort"], ["sort", "nearest"]),
    "benchmark of a shape that is not there": (["bench", "kernels", "--ops=merge", "--shapes=tiny"], ["tiny"]),
    "tuning without an accelerator": (["bench", "kernels", "--ops=merge", "--tune"], ["no kernel to tune"]),
    "benchmark of a width that is not a number": (["bench", "reducers", "--widths=a"], ["widths"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name, capsys, tmp_path):
    argv, words = BAD[name]
    code, _, err = run(capsys, *(a.format(tmp=tmp_path / "run") for a in argv))
    assert code == 2
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err, err


def test_show_draws_a_picture(capsys, tmp_path):
    from PIL import Image

    out = tmp_path / "show.png"
    code, said, _ = run(capsys, "show", "--method=topk", "--keep=0.3", f"--out={out}")
    assert code == 0 and "reads class" in said
    with Image.open(out) as picture:
        assert picture.width > 1000


def test_evaluate_counts_what_it_says(capsys):
    code, out, _ = run(capsys, "evaluate", "--method=random", "--keep=0.25", "--images=16", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["total"] == 16 and record["accuracy"] == record["correct"] / 16
    assert record["tokens_per_block"][-1] == record["tokens_end"] == 16
    assert record["latency_ms_b1"]["p10"] <= record["latency_ms_b1"]["median"] <= record["latency_ms_b1"]["p90"]
