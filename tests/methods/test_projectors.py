"""Projectors that make fewer tokens: properties that all of them share, and those particular to each."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from jtok.checkpoints.reducer_files import load_reducer, save_projector, save_reducer
from jtok.errors import UserError
from jtok.methods.catalogue import make_plan
from jtok.methods.projectors import m3, mqt
from jtok.methods.vit import patchmerger
from jtok.models.decoder.sequence import fold
from jtok.plan import Plan
from jtok.signals import Signals
from jtok.target import Target
from jtok.tokens import Tokens, from_features

pytestmark = pytest.mark.usefixtures("highest_precision")
TARGET = Target(depth=4, grid=(6, 6), width=16, heads=2, layers=2, language_width=24)
OPTIONS = {
    "mlp-projector": {"tokens": 9, "projector": "mlp2x_gelu"},
    "tokenpacker": {"tokens": 9, "heads": 4},
    "mqt": {"tokens": 5, "queries": 16, "heads": 4},
    "m3": {"tokens": 9, "projector": "mlp2x_gelu"},
}
NAMES = list(OPTIONS)


def plan(name: str, target: Target = TARGET, **changes) -> Plan:
    return make_plan(name, target, **{**OPTIONS[name], **changes})


def features(grid=(6, 6), batch: int = 3, width: int = 16) -> Tokens:
    x = np.random.default_rng(0).standard_normal((batch, grid[0] * grid[1], width), np.float32)
    return from_features(jnp.asarray(x), grid)


def project(plan: Plan, t: Tokens) -> Tokens:
    """Tokens of a tower through the plan's projector and any reducer after it. Tapped layers are made from the last."""
    if plan.projector is not None:
        taps = [jnp.sin((1 + i) * t.x) for i in plan.projector.layers_read]
        t = plan.projector(t, taps, plan.projector_count)
    reducer = plan.at("projector")
    return t if reducer is None else reducer(t, Signals(), {})[0]


@functools.cache
def case(name: str):
    """(plan whose parameters are far from where they start: biases and norms matter; jitted (params, t) -> tokens)."""
    p, g = plan(name), np.random.default_rng(3)
    moved = jax.tree.map(lambda a: a + 0.2 * g.standard_normal(a.shape, np.float32), p.params())
    return p.with_params(moved), jax.jit(lambda learned, t: project(p.with_params(learned), t))


def reduce(reducer, t: Tokens) -> Tokens:
    return jax.jit(lambda t: reducer(t, Signals(), {})[0])(t)


@pytest.mark.parametrize("name", NAMES)
def test_properties_of_every_projector(name):
    (p, run), t = case(name), features()
    out = run(p.params(), t)
    count = OPTIONS[name]["tokens"]
    assert out.x.shape == (3, count, 24) and p.counts(36)[-1][2] == count
    others = run(p.params(), t.replace(x=t.x.at[1:].set(jnp.sin(3 * t.x[1:]))))
    np.testing.assert_allclose(others.x[0], out.x[0], atol=2e-5)
    assert np.abs(np.asarray(others.x[1] - out.x[1])).max() > 1e-3
    one = run(p.params(), jax.tree.map(lambda a: a[1:2], t))
    np.testing.assert_allclose(one.x, out.x[1:2], atol=2e-5)
    np.testing.assert_array_equal(one.owner, out.owner[1:2])
    assert (np.asarray(out.owner) >= 0).all() and np.asarray(out.owner).max() < count, "every patch has an owner"
    np.testing.assert_allclose(out.size.sum(1), 36, rtol=1e-5)
    assert (np.asarray(out.position) >= 0).all() and (np.asarray(out.position) <= 5).all()


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    (p, run), t = case(name), features()
    wanted = np.random.default_rng(9).standard_normal((3, OPTIONS[name]["tokens"], 24), np.float32)

    def loss(learned, x):
        return jnp.square(run(learned, t.replace(x=x)).x - wanted).sum()

    grads = jax.jit(jax.grad(loss, (0, 1)))(p.params(), t.x)
    for path, g in jax.tree.leaves_with_path(grads):
        assert np.isfinite(g).all() and (np.asarray(g) != 0).any(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["mlp-projector", "m3", "tokenpacker"])
def test_a_token_owns_the_patches_of_its_cell(name):
    p, run = case(name)
    owner = np.asarray(run(p.params(), features()).owner[0]).reshape(6, 6)
    cell = np.arange(6) // 2
    np.testing.assert_array_equal(owner, cell[:, None] * 3 + cell)


@pytest.mark.parametrize("name", NAMES)
def test_files_of_authors_and_our_own(name, tmp_path):
    p, _ = case(name)
    save_projector(tmp_path / "a.safetensors", p)
    tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert all(n.startswith("model.mm_projector.") for n in tensors)
    whole = {**tensors, "model.layers.0.mlp.up_proj.weight": np.zeros((2, 2), np.float32)}
    safetensors.numpy.save_file(whole, tmp_path / "whole.safetensors")
    bare = {n.removeprefix("model.mm_projector."): a for n, a in tensors.items()}
    safetensors.numpy.save_file(bare, tmp_path / "bare.safetensors")
    save_reducer(tmp_path / "own.safetensors", p.params())
    for file in ("a", "whole", "bare", "own"):
        back = load_reducer(tmp_path / f"{file}.safetensors", plan(name))
        assert jax.tree.structure(back) == jax.tree.structure(p.params())
        jax.tree.map(np.testing.assert_array_equal, back, p.params())
    first, *_ = sorted(tensors)
    changes = {
        "lacks": {n: a for n, a in tensors.items() if n != first},
        "unknown model.mm_projector.extra|has unknown extra": {**tensors, "model.mm_projector.extra": np.zeros(2)},
        "has shape": {**tensors, first: np.zeros((3, 7, 5), np.float32)},
    }
    for sentence, content in changes.items():
        safetensors.numpy.save_file(content, tmp_path / "bad.safetensors")
        with pytest.raises(UserError, match=sentence):
            load_reducer(tmp_path / "bad.safetensors", plan(name))


def test_plans_without_a_projector_of_their_own_have_no_file(tmp_path):
    with pytest.raises(UserError, match="no projector of its own"):
        save_projector(tmp_path / "a.safetensors", plan("m3", projector="own"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_exact_or_nearest(name):
    shares = {"mlp-projector": (36, 16, 2), "tokenpacker": (9, 9, 4), "mqt": (16, 16, 2), "m3": (36, 9, 1)}
    got = [plan(name, tokens=None, keep=keep).counts(36) for keep in (1.0, 0.45, 0.05)]
    assert tuple(rows[-1][2] if rows else 36 for rows in got) == shares[name]
    with pytest.raises(UserError, match=f"{name} is placed before a language model"):
        make_plan(name, dataclasses.replace(TARGET, layers=0))


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        ("m3", {"tokens": 12}, "m3 cannot make 12 tokens of 36: ask for 1, 9, 36"),
        ("m3", {"scales": (0, 9)}, "each must be 1 to that many"),
        ("tokenpacker", {"tokens": 12}, "tokenpacker cannot make 12 tokens of 36: ask for 9, 4"),
        ("tokenpacker", {"scale": 5, "tokens": None}, "do not divide 6x6"),
        ("tokenpacker", {"layers": (1, 5)}, "between 0 and 4"),
        ("tokenpacker", {"heads": 3}, "3 heads do not divide 16"),
        ("mqt", {"tokens": 17}, "mqt has 16 queries and cannot make 17"),
        ("mqt", {"queries": 15}, "square grid"),
        ("mqt", {"stage": 3}, "two stages"),
        ("mlp-projector", {"tokens": 11}, "has 11 cells: ask for 12"),
        ("mlp-projector", {"cells": (7, 2)}, "cannot pool 6x6 patches"),
        ("mlp-projector", {"pool": "inside"}, "after, before or none"),
        ("mlp-projector", {"projector": "mlp0x_gelu"}, "no projector 'mlp0x_gelu'"),
        ("mlp-projector", {"projector": "identity"}, "cannot join widths 16 and 24"),
    ],
)
def test_refusals(name, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        plan(name, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_earlier_reduction_is_refused(name):
    fewer = features().take(jnp.broadcast_to(jnp.arange(30, dtype=jnp.int32), (3, 30)))
    with pytest.raises(UserError, match="no reducer may be placed before"):
        project(plan(name), fewer)


def test_identity_changes_nothing():
    p = plan("mlp-projector", dataclasses.replace(TARGET, language_width=16), projector="identity", pool="none")
    np.testing.assert_array_equal(project(p, features()).x, features().x)


def test_averages_go_through_a_linear_layer():
    before, after = (plan("mlp-projector", projector="linear", tokens=4, pool=pool) for pool in ("before", "after"))
    t = features()
    first = reduce(before.at("tower.output"), t)
    got, want = (jax.jit(lambda t, p=p: project(p, t))(t) for p, t in ((before, first), (after, t)))
    np.testing.assert_allclose(got.x, want.x, atol=1e-5)


def test_the_class_token_is_not_pooled():
    t = features()
    with_class = from_features(jnp.concatenate([jnp.full((3, 1, 16), 7.0), t.x], 1), (6, 6), 1)
    reducer = plan("mlp-projector", pool="before").at("tower.output")
    out = reduce(reducer, with_class)
    np.testing.assert_array_equal(out.x[:, 0], 7.0)
    np.testing.assert_allclose(out.x[:, 1:], reduce(reducer, t).x, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp-projector", "m3"])
def test_crops_of_a_row_are_pooled_one_by_one(name):
    reducer = plan(name, projector="own", tokens=None, keep=0.25).at("projector")
    t = features(batch=4)
    want, together = fold(reduce(reducer, t), 2), reduce(reducer, fold(t, 2))
    for field in ("x", "owner", "position", "segment", "size"):
        np.testing.assert_allclose(getattr(together, field), getattr(want, field), atol=1e-6)


def test_padding_is_ignored_in_averages_of_overlapping_cells():
    reducer = plan("mlp-projector", projector="own", cells=(4, 4)).at("projector")
    t = features()
    valid = t.position[..., 0] < 5  # the last row of patches is padding
    padded = [t.replace(valid=valid, x=jnp.where(valid[..., None], t.x, a)) for a in (0.0, 9.0)]
    out = [reduce(reducer, one) for one in padded]
    np.testing.assert_array_equal(out[0].x, out[1].x)
    whole = reduce(reducer, t)
    np.testing.assert_allclose(out[0].x[:, :12], whole.x[:, :12], atol=1e-6)
    rows = t.x.reshape(3, 6, 6, 16)[:, 4]  # the remainder of the last row of cells
    np.testing.assert_allclose(out[0].x[:, 12], rows[:, :2].mean(1), atol=1e-6)


def test_m3_scales_nest():
    assert m3.nested_scales(24) == (1, 9, 36, 144, 576) and m3.nested_scales(27) == (1, 9, 81, 729)
    target, t = dataclasses.replace(TARGET, grid=(24, 24)), features((24, 24), batch=1, width=4)
    sets = [reduce(make_plan("m3", target, tokens=s).at("projector"), t).x for s in m3.nested_scales(24)]
    for coarse, fine, factor in zip(sets, sets[1:], (3, 2, 2, 2), strict=False):
        side = int(fine.shape[1] ** 0.5) // factor
        pooled = fine.reshape(1, side, factor, side, factor, 4).mean((2, 4)).reshape(1, -1, 4)
        np.testing.assert_allclose(coarse, pooled, atol=1e-6)


def test_m3_trains_on_all_scales():
    p = plan("m3")
    steps = p.for_training(jax.random.key(0))
    assert [q.counts(36)[-1][2] for q in steps] == [1, 9, 36]
    assert all(q.projector is p.projector for q in steps)


def test_a_window_of_tokenpacker_reads_only_its_own_patches():
    (p, run), t = case("tokenpacker"), features()
    out = run(p.params(), t).x
    moved = run(p.params(), t.replace(x=t.x.at[:, 15].add(2.0))).x  # row 2, column 3: the window in the middle
    change = np.abs(np.asarray(moved - out)).max((0, 2))
    assert change[4] > 1e-2 and np.delete(change, 4).max() == 0


def test_the_first_queries_of_mqt_do_not_depend_on_the_count():
    t, module = features(), case("mqt")[0].projector
    full = jax.jit(lambda t: module(t))(t)
    assert full.count == 16
    masked = jax.jit(lambda m: module(t, count=m))
    for m in (1, 5):
        fixed, drawn = jax.jit(lambda t, m=m: module(t, count=m))(t), masked(jnp.int32(m))
        np.testing.assert_allclose(fixed.x, full.x[:, :m], atol=1e-6)
        np.testing.assert_allclose(drawn.x[:, :m], fixed.x, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(drawn.mask()), np.broadcast_to(np.arange(16) < m, (3, 16)))
        assert not drawn.x[:, m:].any() and not drawn.size[:, m:].any()
        np.testing.assert_array_equal(drawn.owner, fixed.owner)


def test_mqt_draws_even_counts_uniformly():
    keys = jax.random.split(jax.random.key(1), 4000)
    counts = np.bincount(jax.vmap(lambda k: mqt.draw_count(k, 16))(keys), minlength=17)
    assert counts[1::2].sum() == 0 and counts[0] == 0
    np.testing.assert_allclose(counts[2::2], 500, rtol=0.25)  # five standard deviations are 21 %
    first, second = (plan("mqt", stage=stage).for_training(jax.random.key(0)) for stage in (1, 2))
    assert [q.projector_count for q in first] == [16] and len(second) == 1
    assert int(second[0].projector_count) == int(mqt.draw_count(jax.random.key(0), 16))


def test_a_learned_reducer_after_a_learned_projector_is_refused():
    p = plan("mqt")
    reducer = patchmerger.PatchMerger(24, 2, False, nnx.Rngs(0))
    with pytest.raises(UserError, match="cannot share a plan"):
        dataclasses.replace(p, sites={"projector": reducer}).params()
