"""`merge` against a loop in float64, and its kernels against the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jtok.errors import UserError
from jtok.kernels import gather, merge
from jtok.kernels.merge import gpu, reference, tpu
from jtok.kernels.merge.shapes import SHAPES, Shape, floor
from jtok.kernels.testing import TPU_INTERPRET, count_kernels, lower

BACKENDS = {"tpu": (tpu, TPU_INTERPRET, (8, 128, 128)), "gpu": (gpu, True, (32, 128, 4))}


def draw(seed, batch, n, num, d, dtype="float32", weighted=True):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(batch, n, d)), dtype)
    assign = jnp.asarray(rng.integers(-1, num, (batch, n)), jnp.int32)
    return x, assign, jnp.asarray(rng.random((batch, n)), jnp.float32) if weighted else None


def loop(x, assign, num, weight=None):
    """Sums [B, num, D] and masses [B, num], row by row in float64."""
    x = np.asarray(x.astype(jnp.float32), np.float64)
    weight = np.ones(x.shape[:2]) if weight is None else np.asarray(weight, np.float64)
    total, mass = np.zeros((x.shape[0], num, x.shape[2])), np.zeros((x.shape[0], num))
    for image, row in np.ndindex(*x.shape[:2]):
        if (segment := int(assign[image, row])) >= 0:
            total[image, segment] += weight[image, row] * x[image, row]
            mass[image, segment] += weight[image, row]
    return total, mass


cases = st.fixed_dictionaries(
    dict(
        seed=st.integers(0, 99),
        batch=st.integers(1, 2),
        n=st.sampled_from([1, 20, 129, 300]),
        num=st.sampled_from([1, 7, 19]),
        d=st.sampled_from([64, 130, 200]),
        dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
        weighted=st.booleans(),
    )
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(cases, st.sampled_from(["sum", "mean"]))
def test_plain_path_is_the_loop(case, mode):
    x, assign, weight = draw(**case)
    num = case["num"]
    merged, mass = merge(x, assign, num, weight=weight, mode=mode)
    assert merged.dtype == x.dtype and mass.dtype == jnp.float32
    total, expected = loop(x, assign, num, weight)
    if mode == "mean":
        total = total / np.where(expected == 0, 1.0, expected)[..., None]
    tolerance = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}[case["dtype"]]
    np.testing.assert_allclose(mass, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(merged.astype(jnp.float32), total, rtol=tolerance, atol=tolerance)
    assert (merged == 0)[np.asarray(expected) == 0].all()


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(cases)
def test_kernels_are_the_loop(backend, case):
    module, interpret, blocks = BACKENDS[backend]
    x, assign, weight = draw(**case)
    with pytest.MonkeyPatch.context() as patch:  # small blocks, so that small arrays have several and a partial one
        patch.setattr(module, "BLOCKS", {"v5e": blocks, "hopper": blocks})
        runs = [module.segment_sum(x, assign, weight, num=case["num"], interpret=interpret) for _ in range(2)]
    for found, expected in zip(runs[0], loop(x, assign, case["num"], weight), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for x, y in zip(*runs, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_under_vmap(backend):
    module = BACKENDS[backend][0]
    x, assign, weight = (jnp.stack([draw(seed, 2, 9, 4, 64)[i] for seed in range(3)]) for i in range(3))
    of = jax.vmap(lambda *args: module.segment_sum(*args, num=4, interpret=True)[0])  # TPU_INTERPRET refuses vmap
    for found, *args in zip(of(x, assign, weight), x, assign, weight, strict=True):
        np.testing.assert_allclose(found, reference.segment_sum(*args, num=4)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_gradients(mode):
    x, assign, weight = draw(0, 2, 7, 4, 5)
    of = lambda x, weight: merge(x, assign, 4, weight=weight + 0.5, mode=mode)  # noqa: E731
    check_grads(of, (x, weight), order=2, modes=("rev",), eps=1e-2, rtol=2e-2, atol=2e-2)
    check_grads(lambda x: merge(x, assign, 4, mode=mode), (x,), order=2, modes=("rev",), eps=1.0)  # linear


def test_empty_segments_and_weightless_ones_are_zeros_with_finite_gradients():
    x, _, _ = draw(0, 1, 3, 4, 5)
    assign, weight = jnp.asarray([[0, 0, 2]]), jnp.asarray([[1.0, 1.0, 0.0]])
    merged, mass = merge(x, assign, 4, weight=weight, mode="mean")
    np.testing.assert_array_equal(mass, [[2.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(merged[0, 1:], 0.0)
    slopes = jax.grad(lambda x, w: merge(x, assign, 4, weight=w, mode="mean")[0].sum(), argnums=(0, 1))(x, weight)
    assert all(jnp.isfinite(s).all() for s in slopes)


def test_gather_undoes_a_merge_of_ones():
    """Each is the other's transpose: <merge(x), y> = <x, gather(y)>."""
    x, assign, _ = draw(0, 2, 30, 7, 5)
    y, _, _ = draw(1, 2, 7, 1, 5)
    there = (merge(x, assign, 7)[0] * y).sum()
    back = (x * gather(y, assign)).sum()
    np.testing.assert_allclose(there, back, rtol=1e-5)


def test_vmap_is_a_loop():
    x, assign, weight = (jnp.stack([draw(seed, 2, 9, 4, 5)[i] for seed in range(3)]) for i in range(3))
    merged, mass = jax.jit(jax.vmap(lambda x, a, w: merge(x, a, 4, weight=w)))(x, assign, weight)
    for i in range(3):
        one = merge(x[i], assign[i], 4, weight=weight[i])
        np.testing.assert_allclose(merged[i], one[0], rtol=1e-6)
        np.testing.assert_allclose(mass[i], one[1], rtol=1e-6)


def _op(shape, weighted=False):
    arrays = lambda dtype: (*shape.arrays(dtype), jax.ShapeDtypeStruct((shape.batch, shape.n), jnp.float32))  # noqa: E731
    if weighted:
        return lambda x, assign, weight: merge(x, assign, shape.num, weight=weight, mode="mean"), arrays
    return lambda x, assign: merge(x, assign, **shape.options), shape.arrays


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_real_shapes_lower_for_cuda(name, dtype):
    for weighted in (False, True):
        op, arrays = _op(SHAPES[name], weighted)
        assert count_kernels(lower(op, *arrays(dtype), platform="cuda"), "cuda") == 1


COMPILED = [("v5e", "tome-vit-s16"), ("v5p", "visionzip-llava-next"), ("v6e", "dpc-knn-llava")]
ALL = [(chip, name) for chip in ("v5e", "v5p", "v6e") for name in SHAPES]


@pytest.mark.parametrize(
    "chip, name", COMPILED + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in COMPILED]
)
def test_real_shapes_compile_for_tpu(chip, name):
    shape = SHAPES[name]
    for dtype, weighted in ((jnp.float32, False), (jnp.bfloat16, False), (jnp.bfloat16, True)):
        op, arrays = _op(shape, weighted)
        lowered = lower(op, *arrays(dtype), platform="tpu", chip=chip)
        assert count_kernels(lowered, "tpu") == 1
        memory = lowered.compile().memory_analysis()
        print(f"{name} {chip} {jnp.dtype(dtype).name}: {memory.temp_size_in_bytes} bytes of temporaries")
        text = lowered.as_text()  # the one-hot assignment is never stored
        assert f"{shape.num}x{shape.n}x" not in text and f"{shape.n}x{shape.num}x" not in text


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_gradient_and_vmap_keep_the_kernel(platform):
    shape = SHAPES["tome-vit-s16"]
    op, arrays = _op(shape)
    slope = jax.grad(lambda x, assign: (op(x, assign)[0] ** 2).sum().astype(jnp.float32))
    assert count_kernels(lower(slope, *arrays(jnp.bfloat16), platform=platform), platform) == 2  # there and back
    more = [jax.ShapeDtypeStruct((3, *v.shape), v.dtype) for v in arrays(jnp.bfloat16)]
    assert count_kernels(lower(jax.vmap(op), *more, platform=platform), platform) == 1


def test_floor_and_draw():
    assert floor(Shape(2, 9, 3, 5), itemsize=2) == (2 * 2 * 9 * 5, 2 * (9 * (5 * 2 + 8) + 3 * 6 * 4))
    x, assign = SHAPES["tome-vit-s16"].draw(jax.random.key(0), jnp.float32)
    assert [v.shape for v in (x, assign)] == [v.shape for v in SHAPES["tome-vit-s16"].arrays(jnp.float32)]
    assert assign.min() >= 0 and assign.max() < 181


X, A = jnp.zeros((2, 5, 3)), jnp.zeros((2, 5), int)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: merge(X[0], A, 4), "x is float32 \\(5, 3\\); pass floats"),
        (lambda: merge(X.astype(int), A, 4), "pass floats \\[B, N, D\\]"),
        (lambda: merge(X, A[:, :4], 4), "assign is int32 \\(2, 4\\); pass integers of shape \\(2, 5\\)"),
        (lambda: merge(X, A.astype(float), 4), "assign is float32"),
        (lambda: merge(X, A, 0), "num=0 segments"),
        (lambda: merge(X, A, 4, weight=A), "weight is int32"),
        (lambda: merge(X, A, 4, mode="max"), "mode='max' is not known; pass 'sum' or 'mean'"),
        (lambda: merge(X, A + 4, 4), "assign holds 4 to 4; pass -1 \\(drop\\) to 3"),
        (lambda: merge(X, A - 2, 4), "assign holds -2 to -2"),
        (lambda: merge(X, A, 4, implementation="cuda"), "implementation='cuda' is not known"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        call()
    assert str(error.value).startswith("merge: ") and "\n" not in str(error.value)
