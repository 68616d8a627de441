"""`nearest` against scores in float64, and its kernels against the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.errors import UserError
from jtok.kernels import nearest
from jtok.kernels.nearest import gpu, reference, tpu
from jtok.kernels.nearest.shapes import SHAPES, Shape, floor
from jtok.kernels.numerics import LARGE_MATMUL, first_argmax
from jtok.kernels.testing import TPU_INTERPRET, count_kernels, lower

BACKENDS = {"tpu": (tpu, TPU_INTERPRET, (32, 128, 2**20)), "gpu": (gpu, True, (16, 32, 16, 4, 2))}
METRICS = ("cosine", "dot", "l2")


def scores(a, b, metric, mask=None):
    """[B, N, M] in float64, larger is better."""
    a, b = (np.asarray(x.astype(jnp.float32), np.float64) for x in (a, b))
    b = np.broadcast_to(b, (a.shape[0], *b.shape[-2:]))
    if metric == "cosine":
        a, b = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-30) for x in (a, b))
    found = np.einsum("bnd,bmd->bnm", a, b)
    if metric == "l2":
        found = 2 * found - (a**2).sum(-1)[:, :, None] - (b**2).sum(-1)[:, None]
    if mask is None:
        return found
    mask = np.asarray(mask)
    return np.where(mask[:, None] if mask.ndim == 2 else mask, found, -np.inf)


def check(value, index, expected, metric, k):
    """`value` are the k best scores, and every `index` has the score it claims (near ties may swap)."""
    n = expected.shape[1]
    best = -np.sort(-expected, -1)[..., :k]
    value = np.asarray(value, np.float64).reshape(-1, n, k) * (-1 if metric == "l2" else 1)
    index = np.asarray(index).reshape(-1, n, k)
    np.testing.assert_array_equal(np.isfinite(value), np.isfinite(best))
    np.testing.assert_array_equal(index[~np.isfinite(best)], 0)
    finite = np.isfinite(best)
    np.testing.assert_allclose(value[finite], best[finite], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(expected, index, -1)[finite], best[finite], rtol=1e-5, atol=1e-4)
    ordered = np.sort(np.where(finite, index, -1 - np.arange(k)), -1)
    assert (np.diff(ordered, axis=-1) > 0).all()  # no candidate twice


def draw(seed, batch, n, m, d, shared=False, masked="none", dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    a = jnp.asarray(rng.normal(size=(batch, n, d)), dtype)
    b = jnp.asarray(rng.normal(size=(m, d) if shared else (batch, m, d)), dtype)
    mask = {"none": None, "columns": rng.random((batch, m)) < 0.5, "pairs": rng.random((batch, n, m)) < 0.3}[masked]
    if mask is not None:
        mask[0, 0], mask[-1, -1] = False, True
    return a, b, None if mask is None else jnp.asarray(mask)


cases = st.fixed_dictionaries(
    dict(
        seed=st.integers(0, 99),
        batch=st.integers(1, 3),
        n=st.sampled_from([1, 7, 33, 65]),
        m=st.sampled_from([3, 31, 129, 300]),
        d=st.sampled_from([1, 5, 40, 130]),
        shared=st.booleans(),
        masked=st.sampled_from(["none", "columns", "pairs"]),
    )
)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(cases, st.sampled_from(METRICS), st.sampled_from([1, 3]))
def test_plain_path_finds_the_best(case, metric, k):
    a, b, mask = draw(**case)
    value, index = nearest(a, b, metric=metric, mask=mask, k=k)
    assert value.dtype == jnp.float32 and index.dtype == jnp.int32
    check(value, index, scores(a, b, metric, mask), metric, k)


@pytest.mark.parametrize("masked", ["none", "columns", "pairs"])
@pytest.mark.parametrize("shared", [False, True])
def test_chunks_change_nothing(masked, shared, monkeypatch):
    a, b, mask = draw(3, 2, 41, 50, 6, shared, masked)
    whole = nearest(a, b, mask=mask, k=2)
    monkeypatch.setattr(reference, "CHUNK", 7 * 50)
    for x, y in zip(nearest(a, b, mask=mask, k=2), whole, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=7, deadline=None, derandomize=True)
@given(cases, st.sampled_from(METRICS), st.sampled_from([1, 3]), st.sampled_from(["float32", "bfloat16", "float16"]))
def test_kernels_find_what_the_plain_path_finds(backend, case, metric, k, dtype):
    module, interpret, blocks = BACKENDS[backend]
    a, b, mask = draw(**case, dtype=dtype)
    pairs = mask if mask is not None and mask.ndim == 3 else None
    b = b if b.ndim == 3 else b[None]
    scale, offset = reference.columns(b, mask if pairs is None else None, metric)
    scale, offset = (jnp.broadcast_to(x, (a.shape[0], x.shape[1])) for x in (scale, offset))
    with pytest.MonkeyPatch.context() as patch:  # small blocks, so that small arrays have several and a partial one
        patch.setattr(module, "BLOCKS", {"v5e": blocks, "hopper": blocks})
        score, index = module.search(a, b, scale, offset, pairs, k=k, interpret=interpret)
        again = module.search(a, b, scale, offset, pairs, k=k, interpret=interpret)
    expected, _ = reference.search(a, b, scale, offset, pairs, k=k)
    np.testing.assert_array_equal(index, again[1])
    np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-4)
    found = score > -jnp.inf
    value = jnp.where(found, reference.value(a, b, jnp.where(found, index, 0), score, metric), -jnp.inf)
    value = jnp.where(found, value, jnp.inf) if metric == "l2" else value
    check(value, jnp.where(found, index, 0), scores(a, b, metric, mask), metric, k)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("k", [1, 4])
def test_the_lowest_index_wins_a_tie(backend, k):
    rng = np.random.default_rng(0)
    a = jnp.asarray(rng.integers(-1, 2, (1, 40, 3)), jnp.float32)
    b = jnp.asarray(rng.integers(-1, 2, (1, 300, 3)), jnp.float32)  # 27 different rows, products exact
    expected = np.argsort(-scores(a, b, "dot"), -1, kind="stable")[..., :k]
    if backend is None:
        index = nearest(a, b, metric="dot", k=k)[1].reshape(1, 40, k)
    else:
        module, interpret, _ = BACKENDS[backend]
        one, zero = jnp.ones((1, 300)), jnp.zeros((1, 300))
        index = module.search(a, b, one, zero, None, k=k, interpret=interpret)[1]
    np.testing.assert_array_equal(index, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_under_vmap(backend):
    module = BACKENDS[backend][0]
    a, b = (jnp.stack([draw(seed, 2, 9, 20, 6)[i] for seed in range(3)]) for i in (0, 1))
    one, zero = jnp.ones((2, 20)), jnp.zeros((2, 20))
    of = jax.vmap(lambda a, b: module.search(a, b, one, zero, None, interpret=True)[1])  # TPU_INTERPRET refuses vmap
    expected = [reference.search(x, y, one, zero, None)[1] for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(of(a, b), jnp.stack(expected))


def differentiable(a, b, metric, k):
    """The values [B, N, k] with nothing of ours in their derivative."""
    b = jnp.broadcast_to(b, (a.shape[0], *b.shape[-2:]))
    if metric == "l2":
        return -jax.lax.top_k(-jnp.square(a[:, :, None] - b[:, None]).sum(-1), k)[0]
    if metric == "cosine":
        a, b = (x / jnp.sqrt(jnp.square(x).sum(-1, keepdims=True)) for x in (a, b))
    return jax.lax.top_k(jnp.einsum("bnd,bmd->bnm", a, b), k)[0]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shared", [False, True])
def test_gradients(metric, shared):
    a, b, _ = draw(5, 2, 6, 9, 4, shared)
    for k in (1, 2):
        ours = lambda a, b, k=k: nearest(a, b, metric=metric, k=k)[0].reshape(2, 6, k)  # noqa: E731
        plain = lambda a, b, k=k: differentiable(a, b, metric, k)  # noqa: E731
        for transform in (jax.jacfwd, jax.jacrev):
            slopes, expected = (transform(f, argnums=(0, 1))(a, b) for f in (ours, plain))
            for x, y in zip(slopes, expected, strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_of_zeros_are_finite(metric):
    slope = jax.grad(lambda x: nearest(x, x, metric=metric)[0].sum())(jnp.zeros((1, 4, 3)))
    assert jnp.isfinite(slope).all()


def test_shapes_without_a_batch_and_masks_of_every_kind():
    a, b, mask = draw(1, 2, 5, 8, 3, masked="columns")
    whole = nearest(a, b, mask=mask)
    for i in range(2):
        one = nearest(a[i], b[i], mask=mask[i])
        np.testing.assert_array_equal(one[1], whole[1][i])
    book = nearest(a, b[0], mask=mask[1])
    for i in range(2):
        np.testing.assert_array_equal(book[1][i], nearest(a[i], b[0], mask=mask[1])[1])
    pairs = jnp.broadcast_to(mask[:, None], (2, 5, 8))
    np.testing.assert_array_equal(nearest(a, b, mask=pairs)[1], whole[1])
    np.testing.assert_array_equal(jax.jit(jax.vmap(nearest))(a, b)[1], nearest(a, b)[1])


def test_no_candidate():
    a, b, _ = draw(1, 2, 5, 8, 3)
    mask = jnp.zeros((2, 8), bool).at[0, 6].set(True)
    value, index = nearest(a, b, mask=mask, k=2)
    assert (index[0, :, 0] == 6).all() and (index[0, :, 1] == 0).all() and (index[1] == 0).all()
    assert jnp.isfinite(value[0, :, 0]).all() and (value[0, :, 1] == -jnp.inf).all() and (value[1] == -jnp.inf).all()
    assert (nearest(a, b, mask=mask, metric="l2")[0][1] == jnp.inf).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 2.0]), min_size=1, max_size=9))
def test_first_argmax_is_argmax(row):
    assert int(first_argmax(jnp.asarray(row, jnp.float32))) == int(np.argmax(row))


def _lowered(shape, dtype, platform, **options):
    return lower(lambda a, b: nearest(a, b, **shape.options), *shape.arrays(dtype), platform=platform, **options)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_real_shapes_lower_for_cuda(name, dtype):
    assert count_kernels(_lowered(SHAPES[name], dtype, "cuda"), "cuda") == 1


COMPILED = [("v5e", "tome-vit-s16"), ("v5p", "codebook-4096x12"), ("v6e", "codebook-16384x256")]
ALL = [(chip, name) for chip in ("v5e", "v5p", "v6e") for name in SHAPES]


@pytest.mark.parametrize(
    "chip, name", COMPILED + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in COMPILED]
)
def test_real_shapes_compile_for_tpu(chip, name):
    shape = SHAPES[name]
    for dtype in (jnp.float32, jnp.bfloat16):
        lowered = _lowered(shape, dtype, "tpu", chip=chip)
        assert count_kernels(lowered, "tpu") == 1
        memory = lowered.compile().memory_analysis()
        print(f"{name} {chip} {jnp.dtype(dtype).name}: {memory.temp_size_in_bytes} bytes of temporaries")
        rows = shape.n * (shape.batch if shape.shared else 1)
        assert f"{rows}x{shape.m}x" not in lowered.as_text()  # the scores are never stored


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_gradient_and_vmap_keep_the_kernel(platform):
    arrays = SHAPES["tome-vit-s16"].arrays(jnp.float32)
    slope = jax.grad(lambda a, b: nearest(a, b)[0].sum(), argnums=(0, 1))
    assert count_kernels(lower(slope, *arrays, platform=platform), platform) == 1
    more = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in arrays]
    assert count_kernels(lower(jax.vmap(nearest), *more, platform=platform), platform) == 1


def test_floor():
    assert floor(Shape(2, 3, 5, 7, "dot", k=2), itemsize=2) == (2 * 2 * 3 * 5 * 7, 2 * (3 + 5) * 7 * 2 + 8 * 2 * 3 * 2)
    assert floor(Shape(2, 3, 5, 7, "dot", shared=True)) == (2 * 2 * 3 * 5 * 7, (6 + 5) * 7 * 4 + 8 * 6)


def test_shapes_draw_what_they_say():
    shape = SHAPES["tome-vit-s16"]
    for x, y in zip(shape.draw(jax.random.key(0), jnp.float32), shape.arrays(jnp.float32), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype


A, B = jnp.zeros((2, 5, 3)), jnp.zeros((2, 8, 3))


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: nearest(A, B, metric="euclid"), "metric='euclid' is not known"),
        (lambda: nearest(A[0], B), "pass a \\[B, N, D\\] and b"),
        (lambda: nearest(A, B[:1]), "must agree in their batch"),
        (lambda: nearest(A, B[..., :2]), "must agree in their batch and in their last axis"),
        (lambda: nearest(A, B.astype(jnp.bfloat16)), "one floating dtype for both"),
        (lambda: nearest(A.astype(int), B.astype(int)), "one floating dtype for both"),
        (lambda: nearest(A, B, k=9), "k=9 matches were asked of 8 candidates"),
        (lambda: nearest(A, B, k=0), "pass 1 <= k <= 8"),
        (lambda: nearest(A, B, mask=jnp.ones((2, 7), bool)), "mask is bool \\(2, 7\\); pass bool of shape"),
        (lambda: nearest(A, B, mask=jnp.ones((2, 8))), "mask is float32"),
        (lambda: nearest(A, B, mask=jnp.zeros((2, 8), bool)), "mask allows no candidate"),
        (lambda: nearest(A, B, implementation="pallas"), "runs only on TPU and CUDA GPUs"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        call()
    assert str(error.value).startswith("nearest: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("masked", [False, True])
def test_large_images_go_one_by_one_to_the_same_matches(masked):
    """Work enough an image (n * m * d above `LARGE_MATMUL`) takes another way than a batch of small ones."""
    a, b = (jax.random.normal(jax.random.key(i), (2, 400, 900)) for i in range(2))
    mask = jax.random.bernoulli(jax.random.key(2), 0.5, (2, 400)) if masked else None
    value, index = nearest(a, b, metric="l2", mask=mask, k=3, implementation="xla")
    assert 400 * 400 * 900 >= LARGE_MATMUL
    for i in range(2):
        one = None if mask is None else mask[i]
        alone_value, alone_index = nearest(a[i], b[i], metric="l2", mask=one, k=3, implementation="xla")
        np.testing.assert_array_equal(index[i], alone_index)
        np.testing.assert_allclose(value[i], alone_value, rtol=1e-5)
