"""Patterns of token reduction: what is kept or merged, how alike that is, and tables of it."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import homogeneity_completeness_v_measure

from jtok import cli
from jtok.errors import UserError
from jtok.evaluation.metrics.feature_similarity import compare_features, normalised
from jtok.evaluation.patterns import pattern_study as study
from jtok.evaluation.patterns.record_patterns import Pattern, read_patterns, save_patterns
from jtok.evaluation.patterns.token_patterns import (
    cluster_agreement,
    compare_maps,
    depth_map,
    intersection_over_area,
    intersection_over_union,
    kept,
    radial_pattern,
)
from jtok.viz.patterns import draw_patterns


def test_a_patch_is_kept_if_it_is_a_token_of_its_own():
    owner = np.array([[1, 2, -1, 3, 3], [1, -1, -1, -1, 2]])
    assert kept(owner).tolist() == [[True, True, False, False, False], [True, False, False, False, True]]


def test_overlaps_of_kept_sets():
    a, b = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool), np.array([[0, 1, 1, 1], [0, 0, 1, 1]], bool)
    assert intersection_over_union(a, b).tolist() == [0.5, 0.0]
    assert intersection_over_area(a, b).tolist() == [pytest.approx(2 / 3), 0.0]
    assert intersection_over_union(a & ~a, b & ~b).tolist() == [0.0, 0.0]


def test_merge_maps_are_scored_as_scikit_learn_does():
    dice = np.random.default_rng(0)
    a, b = dice.integers(-1, 6, (5, 40)), dice.integers(-1, 3, (5, 40))
    a[4] = 2  # one cluster only
    found = np.stack(cluster_agreement(a, b), 1)
    for row, one, two in zip(found, a, b, strict=True):
        np.testing.assert_allclose(row, homogeneity_completeness_v_measure(one, two), atol=1e-9)


def test_depths_are_of_the_block_that_leaves_a_patch_out():
    stages = [np.array([[True, True, False]]), np.array([[True, False, False]])]
    assert depth_map(stages, [3, 6], 12).tolist() == [[12, 6, 3]]


def test_radial_patterns_lie_around_the_centre():
    fixed = radial_pattern(14, 98, "l2").reshape(14, 14)
    assert abs(fixed.sum() - 98) <= 8 and (fixed == fixed[::-1]).all() and (fixed == fixed.T).all()
    assert radial_pattern(14, 36, "max").reshape(14, 14)[4:10, 4:10].all()
    with pytest.raises(UserError, match="no distance 'l3'"):
        radial_pattern(14, 98, "l3")


def test_equal_maps_and_features_are_alike():
    dice = np.random.default_rng(0)
    depths = dice.random((5, 5)) + 1
    found = compare_maps(depths, depths)
    assert {name: round(value, 6) for name, value in found.items()} == {
        "kl12": 0, "kl21": 0, "js": 0, "pcc": 1, "scc": 1, "sim": 1, "emd": 0,
    }  # fmt: skip
    x = normalised(dice.normal(size=(4, 30)))
    turned = np.linalg.qr(dice.normal(size=(4, 4)))[0] @ x
    same = compare_features(x, turned)
    assert same["mean_cca"] == pytest.approx(1) and same["cka_dist"] == pytest.approx(0, abs=1e-9)
    assert same["procrustes"] == pytest.approx(0, abs=1e-9) and same["pwcca"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="too few"):
        compare_features(x[:, :4], x[:, :4])


def pattern(method, keep, masks, family="vit-prune", accuracy=0.5):
    """One site in block 2 of 4, on a 2 x 2 grid, and 10 images of which a share is read rightly."""
    owner = np.where(np.array(masks, bool), np.arange(4), -1).astype(np.int16)
    owner = np.broadcast_to(owner, (1, 10, 4))
    feature = np.random.default_rng(len(method)).normal(size=(10, 3)).astype(np.float32)
    right = None if accuracy is None else np.arange(10) < 10 * accuracy
    return Pattern(method, family, keep, ("tower.block.2.input",), (2, 2), 4, owner, feature, right)


def test_tables_of_patterns():
    a, b = pattern("a", 0.5, [1, 1, 0, 0], accuracy=0.9), pattern("bb", 0.5, [1, 0, 1, 0])
    c, lower = pattern("ccc", 0.5, [1, 1, 0, 0], accuracy=0.8), pattern("a", 0.25, [0, 1, 0, 0])
    group = [a, b, c, lower, pattern("e", 0.5, [1, 1, 1, 1], family="vit-merge")]
    assert study.keeps_of(group) == [0.5, 0.25]
    assert study.matrix_rows(study.at(group, 0.5, merges=False), study.iou) == [
        {"method": "a", "bb": pytest.approx(1 / 3), "ccc": 1.0},
        {"method": "bb", "ccc": pytest.approx(1 / 3)},
    ]
    assert study.ratio_rows(group)[0] == {"method": "a", "0.25 in 0.5": 1.0}
    assert study.accuracy_rows(group)[0] == {"method": "a", "compared by": "kept sets", "0.5": 90.0, "0.25": 50.0}
    assert study.mean_depths(a).tolist() == [[4, 4], [2, 2]]
    assert [row["maps"] for row in study.depth_rows(group, 0.5)] == ["a, bb", "a, ccc", "bb, ccc"]
    rows = study.proxy_rows([*group, pattern("dddd", 0.5, [0, 0, 1, 1], accuracy=0.2)])
    pairs = next(r for r in rows if r["measure"].startswith("kept") and r["keep"] == "0.5")
    assert pairs["pairs"] == 6 and pairs["Spearman"] < 0
    maps, alike = study.pictures(group, 0.5)
    assert set(maps) == {"a", "bb", "ccc"} and len(alike) == 2
    assert len(draw_patterns(maps, alike).subfigs) == 2


def test_patterns_whose_answers_nobody_judged_have_no_correlations():
    group = [pattern(name, 0.5, [1, 1, 0, 0], accuracy=None) for name in ("a", "bb")]
    assert study.accuracy_rows(group)[0]["0.5"] is None
    assert all(row["pairs"] == 0 and row["Spearman"] is None for row in study.proxy_rows(group))


def test_patterns_survive_their_file(tmp_path):
    group = [pattern("a", 0.5, [1, 1, 0, 0]), pattern("bb", 0.25, [1, 0, 0, 0], accuracy=None)]
    save_patterns(tmp_path / "patterns.npz", group)
    for before, after in zip(group, read_patterns(tmp_path / "patterns.npz"), strict=True):
        assert (before.method, before.sites, before.grid) == (after.method, after.sites, after.grid)
        np.testing.assert_array_equal(before.owner, after.owner)
    assert read_patterns(tmp_path / "patterns.npz")[1].right is None
    half = (tmp_path / "patterns.npz").read_bytes()
    (tmp_path / "patterns.npz").write_bytes(half[: len(half) // 2])
    with pytest.raises(UserError, match="holds no patterns"):
        read_patterns(tmp_path / "patterns.npz")


@pytest.mark.slow
def test_the_command_records_the_shipped_models(tmp_path, capsys):
    argv = ["patterns", "--method=topk", "--keeps=0.5,0.25", "--images=20", f"--workdir={tmp_path / 'vit'}"]
    assert cli.main(argv) == 0
    half, quarter = read_patterns(tmp_path / "vit" / "patterns.npz")
    assert half.sites == tuple(f"tower.block.{i}.after_attention" for i in (2, 4, 6)) and half.depth == 8
    assert (kept(half.owner[-1]).sum(1) == 32).all() and (kept(quarter.owner[-1]).sum(1) == 16).all()
    assert (kept(half.owner[-1]) <= kept(half.owner[0])).all() and half.accuracy > 0.7
    argv = ["patterns", "--method=fastv", "--model=shipped", "--images=12", f"--workdir={tmp_path / 'vlm'}"]
    assert cli.main(argv) == 0
    (found,) = read_patterns(tmp_path / "vlm" / "patterns.npz")
    assert found.owner.shape == (1, 12, 81) and (kept(found.owner[-1]).sum(1) == 40).all()
    assert len(found.feature) == len(found.right) == 12


@pytest.mark.slow
def test_questions_of_a_benchmark_are_read_and_not_judged(tmp_path, capsys):
    rows = [{"question_id": i, "image": "a.png", "text": "is there a seven?", "label": "yes"} for i in range(9)]
    (tmp_path / "pope.json").write_text("\n".join(map(json.dumps, rows)))
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "a.png")
    argv = ["patterns", "--method=divprune", "--model=shipped", f"--workdir={tmp_path / 'out'}"]
    assert cli.main([*argv, f"--questions=pope,{tmp_path / 'pope.json'},{tmp_path}"]) == 0
    (found,) = read_patterns(tmp_path / "out" / "patterns.npz")
    assert found.owner.shape == (1, 8, 81) and found.accuracy is None  # whole batches only
    assert "accuracy not asked, 8 images" in capsys.readouterr().out
    assert cli.main([*argv, f"--questions=pope,{tmp_path / 'pope.json'},{tmp_path}", "--images=4"]) == 2
    assert cli.main([*argv, "--questions=pope"]) == 2
    assert "three words" in capsys.readouterr().err


def test_patterns_refuse_what_is_no_pattern(tmp_path, capsys):
    for argv, said in (
        (["--method=topkk"], "topkk"),
        (["--method=topk", "--keeps=half"], "--keeps=half is not a number"),
        (["--method=downsample-image", "--images=4"], "resizes the image"),
    ):
        assert cli.main(["patterns", f"--workdir={tmp_path}", *argv]) == 2
        assert said in capsys.readouterr().err
