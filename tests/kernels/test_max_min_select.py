"""`max_min_select` against a greedy loop in float64, and its kernels against the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.errors import UserError
from jtok.kernels import max_min_select
from jtok.kernels.max_min_select import gpu, reference, tpu
from jtok.kernels.max_min_select.shapes import SHAPES, Shape, floor
from jtok.kernels.numerics import LARGE_MATMUL
from jtok.kernels.testing import TPU_INTERPRET, count_kernels, lower

BACKENDS = {"tpu": (tpu, TPU_INTERPRET), "gpu": (gpu, True)}


def pairwise(x, metric):
    """[N, N] in float64."""
    x = np.asarray(x.astype(jnp.float32), np.float64)
    if metric == "cosine":
        x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30)
        return 1.0 - x @ x.T
    differences = x[:, None] - x[None]
    return np.abs(differences).sum(-1) if metric == "l1" else (differences**2).sum(-1)


def follow(picks, x, metric, weight=None, bonus=None, start=None, chosen=None, valid=None):
    """Assert that every pick of one image was the greedy one, up to rounding, given those before it."""
    distance, n = pairwise(x, metric), len(x)
    ones = np.ones(n)
    weight, bonus = ones if weight is None else np.asarray(weight), 0 * ones if bonus is None else np.asarray(bonus)
    valid = ones > 0 if valid is None else np.asarray(valid)
    members = [] if chosen is None else list(np.flatnonzero(np.asarray(chosen) & valid))
    open_ = [i for i in range(n) if valid[i] and i not in members]
    for t, pick in enumerate(np.asarray(picks).tolist()):
        if not open_:
            assert pick == -1
            continue
        if t == 0 and not members and start is not None:
            assert pick == start
        elif members or (valid.sum() > 1):
            apart = [
                distance[i, members].min() if members else min(distance[i, j] for j in range(n) if valid[j] and j != i)
                for i in open_
            ]
            gain = np.asarray(apart) * weight[open_] + bonus[open_]
            assert pick in open_
            assert gain[open_.index(pick)] >= gain.max() - 1e-4 * max(1.0, abs(gain.max()))
        else:
            assert pick == open_[0]
        open_ = [i for i in open_ if i != pick]
        members.append(pick)


def draw(seed, batch, n, d, dtype="float32", weighted=False, added=False, start=False, some=False, padded=False):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(batch, n, d)) * 3, dtype)
    valid = jnp.asarray(rng.random((batch, n)) < 0.8).at[:, n // 2].set(True) if padded else None
    options = dict(
        weight=jnp.asarray(rng.random((batch, n)), jnp.float32) if weighted else None,
        bonus=jnp.asarray(rng.random((batch, n)), jnp.float32) if added else None,
        start=jnp.full(batch, n // 2, jnp.int32) if start else None,
        chosen=jnp.asarray(rng.random((batch, n)) < 0.2).at[0].set(False) if some else None,
        valid=valid,
    )
    return x, options


cases = st.fixed_dictionaries(
    dict(
        seed=st.integers(0, 99),
        batch=st.integers(1, 3),
        n=st.sampled_from([1, 2, 15, 16, 40]),
        d=st.sampled_from([2, 9, 130]),
        dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
        weighted=st.booleans(),
        added=st.booleans(),
        start=st.booleans(),
        some=st.booleans(),
        padded=st.booleans(),
    )
)


def check(picks, x, metric, options):
    assert picks.dtype == jnp.int32
    for image in range(x.shape[0]):
        of_image = {name: None if value is None else value[image] for name, value in options.items()}
        follow(picks[image], x[image], metric, **of_image)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(cases, st.sampled_from(["cosine", "l2", "l1"]), st.sampled_from([0.2, 1.0]))
def test_plain_path_is_greedy(case, metric, part):
    x, options = draw(**case)
    k = max(1, int(part * case["n"]))
    check(max_min_select(x, k, metric=metric, **options), x, metric, options)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(cases, st.sampled_from(["cosine", "l2"]), st.sampled_from([0.2, 1.0]))
def test_kernels_are_greedy(backend, case, metric, part):
    module, interpret = BACKENDS[backend]
    x, options = draw(**case)
    valid = jnp.ones(x.shape[:2], bool) if options["valid"] is None else options["valid"]
    chosen = None if options["chosen"] is None else options["chosen"] & valid
    args = x, options["weight"], options["bonus"], options["start"], chosen, valid
    static = dict(k=max(1, int(part * case["n"])), metric=metric, interpret=interpret)
    picks = jax.jit(lambda *args: module.select(*args, **static))(*args)
    check(picks, x, metric, options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_pick_the_lowest_of_equals_and_repeat_themselves(backend):
    module, interpret = BACKENDS[backend]
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 700, 3)), jnp.float32)  # 27 places, distances exact
    args = x, None, None, None, None, jnp.ones((2, 700), bool)
    expected = reference.select(*args, k=40, metric="l2")
    run = jax.jit(lambda *args: module.select(*args, k=40, metric="l2", interpret=interpret))
    np.testing.assert_array_equal(run(*args), expected)
    np.testing.assert_array_equal(run(*args), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_under_vmap(backend):
    module = BACKENDS[backend][0]
    x = jnp.stack([draw(seed, 2, 20, 6)[0] for seed in range(3)])
    valid = jnp.ones((2, 20), bool)
    static = dict(k=5, metric="cosine")
    of = lambda x: module.select(x, None, None, None, None, valid, **static, interpret=True)  # noqa: E731
    expected = [reference.select(one, None, None, None, None, valid, **static) for one in x]
    np.testing.assert_array_equal(jax.vmap(of)(x), jnp.stack(expected))  # TPU_INTERPRET refuses vmap


def test_one_buffer_does_where_two_do_not_fit(monkeypatch):
    x, _ = draw(0, 3, 20, 6)
    monkeypatch.setattr(tpu, "BUDGET", {"v5e": 32 * 128 * 4})
    assert tpu.buffers(x) == 1 and tpu.takes(x, "l2") and not tpu.takes(jnp.zeros((1, 33, 6)), "l2")
    assert not tpu.takes(x, "l1")
    args, static = (x, None, None, jnp.zeros(3, jnp.int32), None, jnp.ones((3, 20), bool)), dict(k=4, metric="l2")
    picks = tpu.select(*args, **static, interpret=TPU_INTERPRET)
    np.testing.assert_array_equal(picks, reference.select(*args, **static))


def test_starts():
    x, options = draw(0, 2, 12, 5, weighted=True, padded=True)
    valid, weight = options["valid"].at[:, 0].set(False), options["weight"]
    first = max_min_select(x, 3, start="first", valid=valid)[:, 0]
    np.testing.assert_array_equal(first, jnp.argmax(valid, -1))
    heaviest = max_min_select(x, 3, start="weight", weight=weight, valid=valid)[:, 0]
    np.testing.assert_array_equal(heaviest, jnp.argmax(jnp.where(valid, weight, -1.0), -1))
    np.testing.assert_array_equal(max_min_select(x, 3, start=7)[:, 0], [7, 7])
    np.testing.assert_array_equal(max_min_select(x, 3, start=jnp.asarray([4, 9]))[:, 0], [4, 9])


def test_a_weight_of_zero_and_a_bonus_rule_the_order():
    """`bonus` is the additive saliency of maximal marginal relevance; far larger than any distance, it sorts."""
    x, _ = draw(0, 1, 6, 4)
    order = max_min_select(x, 6, bonus=jnp.asarray([[10.0, 60, 30, 20, 50, 40]]))
    np.testing.assert_array_equal(order, [[1, 4, 5, 2, 3, 0]])
    weight = jnp.asarray([[1.0, 1, 0, 1, 0, 1]])
    assert set(np.asarray(max_min_select(x, 6, weight=weight))[0, 4:]) == {2, 4}


def test_continuing_from_a_chosen_set_gives_the_same_picks():
    x, _ = draw(3, 2, 30, 7)
    picks = max_min_select(x, 10)
    chosen = jnp.zeros((2, 30), bool).at[jnp.arange(2)[:, None], picks[:, :4]].set(True)
    np.testing.assert_array_equal(max_min_select(x, 6, chosen=chosen), picks[:, 4:])


def test_masked_tokens_change_nothing():
    x, _ = draw(3, 2, 20, 7)
    more = jnp.concatenate([x, 100 * jnp.ones((2, 5, 7))], 1)
    valid = jnp.arange(25) < 20
    padded = max_min_select(more, 22, valid=jnp.broadcast_to(valid, (2, 25)))
    np.testing.assert_array_equal(padded[:, :20], max_min_select(x, 20))
    np.testing.assert_array_equal(padded[:, 20:], -1)


def test_vmap_and_jit_are_the_loop():
    x = jnp.stack([draw(seed, 2, 20, 6)[0] for seed in range(3)])
    picks = jax.jit(jax.vmap(lambda x: max_min_select(x, 5)))(x)
    np.testing.assert_array_equal(picks, jnp.stack([max_min_select(one, 5) for one in x]))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_real_shapes_lower_for_cuda(name, dtype):
    shape = SHAPES[name]
    op = lambda x: max_min_select(x, **shape.options)  # noqa: E731
    assert count_kernels(lower(op, *shape.arrays(dtype), platform="cuda"), "cuda") == 1


COMPILED = [("v5e", "vit-s16"), ("v5p", "vit-l14-336"), ("v6e", "llava-next")]
ALL = [(chip, name) for chip in ("v5e", "v5p", "v6e") for name in SHAPES]


@pytest.mark.parametrize(
    "chip, name", COMPILED + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in COMPILED]
)
def test_real_shapes_compile_for_tpu(chip, name):
    shape = SHAPES[name]
    op = lambda x: max_min_select(x, **shape.options)  # noqa: E731
    lowered = lower(op, *shape.arrays(jnp.bfloat16), platform="tpu", chip=chip)
    assert count_kernels(lowered, "tpu") == 2  # the most isolated token is found by `nearest`
    memory = lowered.compile().memory_analysis()
    print(f"{name} {chip}: {memory.temp_size_in_bytes} bytes of temporaries")
    assert f"{shape.n}x{shape.n}x" not in lowered.as_text()  # no matrix of distances


def test_vmap_keeps_the_kernel():
    (x,) = SHAPES["vit-s16"].arrays(jnp.bfloat16)
    more = jax.ShapeDtypeStruct((3, *x.shape), x.dtype)
    for platform, kernels in (("tpu", 2), ("cuda", 1)):  # on TPU the most isolated token is found by `nearest`
        op = jax.vmap(lambda x: max_min_select(x, 9))
        assert count_kernels(lower(op, more, platform=platform), platform) == kernels


def test_floor_and_draw():
    assert floor(Shape(2, 9, 3, 5), itemsize=2) == (2 * 2 * 12 * 9 * 5, 2 * (9 * 5 * 2 + 12))
    assert floor(Shape(2, 9, 3, 5), isolated=False).flops == 2 * 2 * 3 * 9 * 5
    (x,) = SHAPES["vit-s16"].draw(jax.random.key(0), jnp.float32)
    assert x.shape == SHAPES["vit-s16"].arrays(jnp.float32)[0].shape


X = jnp.ones((2, 5, 3))


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: max_min_select(X[0], 2), "x is float32 \\(5, 3\\); pass floats"),
        (lambda: max_min_select(X, 6), "k=6 of 5 tokens cannot be picked; pass 1 <= k <= 5"),
        (lambda: max_min_select(X, 0), "k=0 of 5 tokens"),
        (lambda: max_min_select(X, 2, metric="dot"), "metric='dot' is not known"),
        (lambda: max_min_select(X, 2, weight=jnp.ones((2, 4))), "weight is float32 \\(2, 4\\); pass floats of shape"),
        (lambda: max_min_select(X, 2, chosen=jnp.ones((2, 5))), "chosen is float32 \\(2, 5\\); pass bool of shape"),
        (lambda: max_min_select(X, 2, start="last"), "start='last' is not known"),
        (lambda: max_min_select(X, 2, start="weight"), "start='weight' needs a weight"),
        (lambda: max_min_select(X, 2, start=5), "start=5 does not name tokens; pass indices in \\[0, 5\\)"),
        (lambda: max_min_select(X, 2, valid=jnp.zeros((2, 5), bool)), "valid leaves some image without a token"),
        (lambda: max_min_select(X, 2, implementation="pallas"), "runs only on TPU and CUDA GPUs"),
        (lambda: max_min_select(X, 2, implementation="gpu"), "implementation='gpu' is not known"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        call()
    assert str(error.value).startswith("max_min_select: ") and "\n" not in str(error.value)


def test_large_images_go_one_by_one_to_the_same_picks():
    x = jax.random.normal(jax.random.key(0), (2, 400, 900))
    assert 400 * 400 * 900 >= LARGE_MATMUL
    together = max_min_select(x, 20, implementation="xla")
    for i in range(2):
        np.testing.assert_array_equal(together[i], max_min_select(x[i : i + 1], 20, implementation="xla")[0])
