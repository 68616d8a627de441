"""`gather` against numpy, and its kernels against the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jtok.errors import UserError
from jtok.kernels import gather
from jtok.kernels.gather import gpu, reference, tpu
from jtok.kernels.gather.shapes import SHAPES, Shape, floor
from jtok.kernels.testing import TPU_INTERPRET, count_kernels, lower

BACKENDS = {"tpu": (tpu, TPU_INTERPRET), "gpu": (gpu, True)}


def draw(seed, groups, n, k, d, dtype="float32"):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(groups, n, d)) * 50).astype(dtype)
    return x, jnp.asarray(rng.integers(-1, n, (groups, k)), jnp.int32)


def rows(x, index):
    """By numpy, one set at a time; zeros for -1."""
    x, index = np.asarray(x), np.asarray(index)
    return np.stack([np.where(i[:, None] < 0, np.zeros_like(one[:1]), one[i]) for one, i in zip(x, index, strict=True)])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.integers(0, 99),
    st.integers(1, 3),
    st.sampled_from([1, 9, 40, 77]),
    st.sampled_from([1, 8, 21]),
    st.sampled_from([64, 130, 300]),
    st.sampled_from(["float32", "bfloat16", "float16", "int32", "int8", "uint8", "bool"]),
)
def test_kernels_copy_every_bit(backend, seed, groups, n, k, d, dtype):
    module, interpret = BACKENDS[backend]
    x, index = draw(seed, groups, n, k, d, dtype)
    with pytest.MonkeyPatch.context() as patch:  # several blocks of features, the last one partial
        if module is tpu:
            patch.setattr(tpu, "WIDEST", 128)
        else:
            patch.setattr(gpu, "BLOCKS", {"hopper": (4, 256, 4)})
        taken = module.take(x, index, interpret=interpret)
    assert taken.dtype == x.dtype
    expected = rows(x, index)
    assert np.asarray(taken).tobytes() == expected.tobytes()
    assert np.asarray(reference.take(x, index)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_keep_what_is_not_finite_to_its_row(backend):
    module, interpret = BACKENDS[backend]
    x, _ = draw(0, 1, 9, 1, 64)
    x = x.at[0, 3].set(jnp.nan).at[0, 4].set(jnp.inf)
    taken = module.take(x, jnp.asarray([[0, 3, 5, -1]]), interpret=interpret)
    assert jnp.isfinite(taken[0]).all(-1).tolist() == [True, False, True, True]
    np.testing.assert_array_equal(taken[0, 3], 0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernels_under_vmap(backend):
    module = BACKENDS[backend][0]
    x, index = (jnp.stack([draw(seed, 2, 9, 5, 64)[i] for seed in range(3)]) for i in (0, 1))
    taken = jax.vmap(lambda x, index: module.take(x, index, interpret=True))(x, index)  # TPU_INTERPRET refuses vmap
    for found, one, i in zip(taken, x, index, strict=True):
        np.testing.assert_array_equal(found, rows(one, i))


def test_trees_and_trailing_axes():
    rng = np.random.default_rng(0)
    index = jnp.asarray([[2, -1, 0], [1, 1, 3]])
    tree = {
        "x": jnp.asarray(rng.normal(size=(2, 4, 3, 2)), jnp.bfloat16),
        "position": jnp.arange(8).reshape(2, 4),
        "valid": jnp.ones((2, 4), bool),
    }
    taken = gather(tree, index)
    assert jax.tree.map(lambda t: (t.shape, t.dtype), taken) == {
        "x": ((2, 3, 3, 2), jnp.bfloat16),
        "position": ((2, 3), jnp.int32),
        "valid": ((2, 3), jnp.bool_),
    }
    np.testing.assert_array_equal(taken["position"], [[2, 0, 0], [5, 5, 7]])
    np.testing.assert_array_equal(taken["valid"], [[True, False, True], [True, True, True]])
    expected = rows(tree["x"].reshape(2, 4, 6), index).reshape(2, 3, 3, 2)
    np.testing.assert_array_equal(taken["x"].astype(jnp.float32), expected.astype(np.float32))


def test_rows_of_a_cache():
    rng = np.random.default_rng(0)
    cache = jnp.asarray(rng.normal(size=(2, 3, 7, 4)), jnp.float32)
    index = jnp.asarray(rng.integers(-1, 7, (2, 3, 5)))
    taken = gather(cache, index, axis=2)
    for head in range(3):
        np.testing.assert_array_equal(taken[:, head], rows(cache[:, head], index[:, head]))
    shared = gather(cache, index[:, 0], axis=2)
    np.testing.assert_array_equal(shared, gather(cache, jnp.broadcast_to(index[:, :1], index.shape), axis=2))
    np.testing.assert_array_equal(jax.vmap(gather)(cache, index), taken)


def test_gradients_add_up_in_float32():
    x, _ = draw(0, 2, 6, 1, 5)
    index = jnp.asarray([[3, 3, -1, 0], [5, 1, 1, 1]])
    check_grads(lambda x: gather(x, index), (x,), order=2, modes=("rev",), eps=1.0)  # linear: any step will do
    many = jnp.zeros((1, 600), jnp.int32)  # 600 ones do not fit bfloat16's 8 bits when added one by one
    slope = jax.grad(lambda x: gather(x, many).sum().astype(jnp.float32))(jnp.ones((1, 2, 3), jnp.bfloat16))
    assert slope.dtype == jnp.bfloat16
    np.testing.assert_array_equal(slope[0].astype(jnp.float32), [[600.0] * 3, [0.0] * 3])


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_real_shapes_lower_for_cuda(name, dtype):
    assert count_kernels(lower(gather, *SHAPES[name].arrays(dtype), platform="cuda"), "cuda") == 1


COMPILED = [("v5e", "visionzip-llava"), ("v5p", "cache-llama-7b"), ("v6e", "divprune-llava-next")]
ALL = [(chip, name) for chip in ("v5e", "v5p", "v6e") for name in SHAPES]


@pytest.mark.parametrize(
    "chip, name", COMPILED + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in COMPILED]
)
def test_real_shapes_compile_for_tpu(chip, name):
    shape = SHAPES[name]
    for dtype in (jnp.float32, jnp.bfloat16):
        lowered = lower(gather, *shape.arrays(dtype), platform="tpu", chip=chip)
        assert count_kernels(lowered, "tpu") == 1
        memory = lowered.compile().memory_analysis()
        print(f"{name} {chip} {jnp.dtype(dtype).name}: {memory.temp_size_in_bytes} bytes of temporaries")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_gradient_and_vmap_keep_the_kernel(platform):
    x, index = SHAPES["evit-vit-s16"].arrays(jnp.bfloat16)
    slope = jax.grad(lambda x, index: (gather(x, index) ** 2).sum().astype(jnp.float32))
    assert count_kernels(lower(slope, x, index, platform=platform), platform) == 2  # there and back
    more = [jax.ShapeDtypeStruct((3, *v.shape), v.dtype) for v in (x, index)]
    assert count_kernels(lower(jax.vmap(gather), *more, platform=platform), platform) == 1


def test_floor_and_draw():
    assert floor(Shape(2, 9, 3, 5), itemsize=2) == (0, 2 * 3 * (5 * 2 * 2 + 4))
    x, index = SHAPES["evit-vit-s16"].draw(jax.random.key(0), jnp.float32)
    assert [v.shape for v in (x, index)] == [v.shape for v in SHAPES["evit-vit-s16"].arrays(jnp.float32)]
    assert (jnp.diff(index) > 0).all() and index.min() >= 0 and index.max() < 197


X = jnp.zeros((2, 5, 3))


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: gather(X, jnp.zeros((2, 3))), "index is float32; pass integers"),
        (lambda: gather(X, jnp.zeros((3, 3), int)), "index has shape \\(3, 3\\)"),
        (lambda: gather(X, jnp.zeros((2, 3), int), axis=3), "axis=3 is not a token axis"),
        (lambda: gather(X, jnp.zeros((2, 3), int), axis=0), "axis=0 is not a token axis"),
        (lambda: gather(X, jnp.full((2, 3), 5)), "index holds 5, but axis 1 of x has only 5 rows"),
        (lambda: gather(X, jnp.zeros((2, 3), int), implementation="triton"), "implementation='triton' is not known"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        call()
    assert str(error.value).startswith("gather: ") and "\n" not in str(error.value)
