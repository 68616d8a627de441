"""`attention_scores` against the textbook formula in float64, and its kernels against the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtok.errors import UserError
from jtok.kernels import attention_scores
from jtok.kernels.attention_scores import gpu, reference, tpu
from jtok.kernels.attention_scores.shapes import SHAPES, floor
from jtok.kernels.attention_scores.tiles import Budget
from jtok.kernels.testing import TPU_INTERPRET, compile_for_tpu, count_kernels, lower

SMALL_TILES = Budget(600, 300)  # cuts images, heads and rows of even the small shapes below
BACKENDS = {"tpu": (tpu, TPU_INTERPRET), "gpu": (gpu, True)}


def textbook(q, k, v, bias=None, valid=None, causal=False, scale=None):
    """Output [B,N,H,D], probabilities [B,H,N,M] and log-sum-exp [B,H,N] in float64, masks as minus infinity."""
    q, k, v = (np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k, v))
    n, m, share = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    k, v = np.repeat(k, share, 2), np.repeat(v, share, 2)
    s = np.einsum("bnhd,bmhd->bhnm", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        s = s + np.asarray(bias, np.float64)[:, None, None]
    seen = np.ones(s.shape, bool) if valid is None else np.broadcast_to(np.asarray(valid)[:, None, None], s.shape)
    if causal:
        seen = seen & (np.arange(m) <= np.arange(n)[:, None] + m - n)
    e = np.where(seen, np.exp(np.where(seen, s, 0.0)), 0.0)
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total > 0, total, 1.0)
    lse = np.where(total > 0, np.log(np.where(total > 0, total, 1.0)), -1e30)[..., 0]
    return np.einsum("bhnm,bmhd->bnhd", p, v), p, lse


def draw(seed, b, n, m, heads, key_heads, d, dtype=jnp.float32, masked=True):
    """Random q, k, v, bias, valid (the first image sees no key), weights."""
    rng = np.random.default_rng(seed)
    q = jnp.asarray(rng.normal(size=(b, n, heads, d)), dtype)
    k, v = (jnp.asarray(rng.normal(size=(b, m, key_heads, d)), dtype) for _ in "kv")
    bias = jnp.asarray(rng.normal(size=(b, m)), jnp.float32) if masked else None
    valid = jnp.asarray(rng.random((b, m)) < 0.7).at[0].set(b == 1) if masked else None
    return q, k, v, bias, valid, jnp.asarray(rng.normal(size=(b, n)), jnp.float32)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        np.asarray(found.astype(jnp.float32)), np.asarray(expected), rtol=tolerance, atol=tolerance
    )


shapes = st.tuples(
    st.integers(1, 2), st.integers(1, 40), st.integers(1, 40), st.sampled_from([(1, 1), (3, 3), (4, 2), (4, 1)])
).map(lambda s: (*s[:3], *s[3]))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(shapes, st.sampled_from([3, 8]), st.booleans(), st.booleans(), st.integers(0, 99))
def test_plain_path_is_the_formula(shape, d, causal, masked, seed):
    q, k, v, bias, valid, weights = draw(seed, *shape, d, masked=masked)
    out, p, lse = textbook(q, k, v, bias, valid, causal)
    received = np.einsum("bhnm,bn->bhm", p, np.asarray(weights))

    @jax.jit
    def run(q, k, v, bias, valid, weights):
        masks = dict(bias=bias, valid=valid, causal=causal)
        whole = attention_scores(q, k, v, **masks, rows="all", row_weights=weights, per_head=True, return_lse=True)
        key_bias = jnp.where(valid, bias, reference.NEGATIVE) if masked else None
        static = dict(causal=causal, scale=d**-0.5, budget=SMALL_TILES)
        return (whole.out, whole.lse, whole.received), reference.attend(q, k, v, key_bias, weights, **static)

    for found in run(q, k, v, bias, valid, weights):
        for x, y in zip(found, (out, lse, received), strict=True):
            close(x, y)


@pytest.mark.parametrize("rows", [0, -1, (0, 4), range(3, 45), "traced", "per image"])
@pytest.mark.parametrize("causal", [False, True])
def test_scored_rows(rows, causal):
    q, k, v, bias, valid, _ = draw(0, 2, 45, 50, 4, 2, 8)
    _, p, _ = textbook(q, k, v, bias, valid, causal)
    index = {"traced": [[7, 3]] * 2, "per image": [[1, 2], [44, 0]]}.get(rows)
    index = np.array(index if index else [np.atleast_1d(np.array(rows))] * 2) % 45
    given_rows = (
        jnp.asarray(index if rows == "per image" else index[0]) if index.shape[1] == 2 and rows != (0, 4) else rows
    )
    weights = jnp.asarray(np.random.default_rng(1).normal(size=index.shape), jnp.float32)
    masks = dict(bias=bias, valid=valid, causal=causal)
    found = jax.jit(lambda: attention_scores(q, k, v, **masks, rows=given_rows, row_weights=weights))()
    picked = np.take_along_axis(p, index[:, None, :, None], 2)
    expected = np.einsum("bhrm,br->bhm", picked, np.asarray(weights))
    close(found.received, expected.mean(1))
    more = dict(per_head=True, return_probabilities=True)
    found = jax.jit(lambda: attention_scores(q, k, v, **masks, rows=given_rows, **more))()
    close(found.probabilities, picked)
    close(found.received, picked.sum(2))
    assert found.lse is None


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_inputs_are_summed_in_float32(dtype):
    q, k, v, bias, valid, weights = draw(0, 2, 33, 40, 4, 2, 16, dtype)
    out, p, lse = textbook(q, k, v, bias, valid)
    masks = dict(bias=bias, valid=valid)
    found = jax.jit(lambda: attention_scores(q, k, v, **masks, rows="all", row_weights=weights, return_lse=True))()
    assert (found.out.dtype, found.received.dtype, found.lse.dtype) == (dtype, jnp.float32, jnp.float32)
    close(found.received, np.einsum("bhnm,bn->bm", p, np.asarray(weights)) / 4)
    close(found.lse, lse)
    close(found.out, out, float(jnp.finfo(dtype).eps))  # only the result is rounded
    few = jax.jit(lambda: attention_scores(q, k, v, **masks, rows=(0, 5), return_probabilities=True))()
    close(few.probabilities, p[:, :, [0, 5]])


def naive(q, k, v, bias, valid, causal):
    """The formula in jnp, for its gradient; every row must see a key."""
    n, m, share = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    s = jnp.einsum("bnhd,bmhd->bhnm", q, jnp.repeat(k, share, 2)) * q.shape[-1] ** -0.5 + bias[:, None, None]
    seen = valid[:, None, None]
    if causal:
        seen = seen & (jnp.arange(m) <= jnp.arange(n)[:, None] + m - n)
    s = jnp.where(seen, s, -jnp.inf)
    p = jax.nn.softmax(s, -1)
    return jnp.einsum("bhnm,bmhd->bnhd", p, jnp.repeat(v, share, 2)), p, jax.nn.logsumexp(s, -1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", ["all", (0, 2), range(40)])
def test_gradients_through_every_output(rows, causal):
    q, k, v, bias, valid, weights = draw(3, 2, 40, 43, 4, 2, 8)
    valid = valid.at[:, :4].set(True)
    rng = np.random.default_rng(5)
    count = 40 if rows == "all" else len(rows)
    probe = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in (q.shape, (2, 4, 43), (2, 4, 40))]

    def ours(q, k, v, bias, weights):
        found = attention_scores(
            q, k, v, bias=bias, valid=valid, causal=causal, rows=rows, row_weights=weights[:, :count], per_head=True,
            return_lse=True,
        )  # fmt: skip
        return sum(jnp.sum(x * y) for x, y in zip((found.out, found.received, found.lse), probe, strict=True))

    def theirs(q, k, v, bias, weights):
        out, p, lse = naive(q, k, v, bias, valid, causal)
        picked = p if rows == "all" else p[:, :, jnp.array(rows)]
        received = jnp.einsum("bhrm,br->bhm", picked, weights[:, :count])
        return sum(jnp.sum(x * y) for x, y in zip((out, received, lse), probe, strict=True))

    arrays = q, k, v, bias, weights
    for x, y in zip(*(jax.jit(jax.grad(f, range(5)))(*arrays) for f in (ours, theirs)), strict=True):
        close(x, y, 3e-5)


def test_gradients_across_tiles_and_of_rows_without_keys():
    q, k, v, bias, valid, weights = draw(4, 2, 13, 19, 4, 2, 8)
    key_bias = jnp.where(valid, bias, reference.NEGATIVE)

    @jax.jit
    def run(q, k, v, key_bias, weights):
        static = dict(causal=True, scale=0.3)
        out, lse, received = reference.attend(q, k, v, key_bias, weights, **static)
        grads = [jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape) for x in (out, lse, received)]
        saved = q, k, v, key_bias, weights, out, lse, grads
        cut = reference.attend_backward(*saved, **static, budget=SMALL_TILES)
        return cut, reference.attend_backward(*saved, **static)

    cut, whole = run(q, k, v, key_bias, weights)
    for x, y in zip(cut, whole, strict=True):
        close(x, y)
        assert jnp.isfinite(y).all()
    assert all(not x[0].any() for x in whole[:3])  # the first image sees no key


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    shapes, st.sampled_from([(5, jnp.float32), (16, jnp.bfloat16)]), st.booleans(), st.booleans(), st.integers(0, 99)
)
def test_kernel_in_interpret_mode(backend, shape, width, causal, masked, seed):
    _compare(backend, shape, width, causal, masked, seed)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 400), st.integers(1, 400), st.just(4), st.sampled_from([1, 2, 4])),
    st.sampled_from([(24, jnp.float32), (64, jnp.bfloat16), (72, jnp.float16)]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_kernel_in_interpret_mode_at_length(backend, shape, width, causal, masked, seed):
    _compare(backend, shape, width, causal, masked, seed)


def _compare(backend, shape, width, causal, masked, seed):
    (module, interpret), (d, dtype) = BACKENDS[backend], width
    q, k, v, bias, valid, weights = draw(seed, *shape, d, dtype, masked)
    arrays = q, k, v, jnp.where(valid, bias, reference.NEGATIVE) if masked else None, weights
    static = dict(causal=causal, scale=d**-0.5)
    run = jax.jit(lambda *arrays: module.attend(*arrays, **static, interpret=interpret))
    expected = jax.jit(lambda *arrays: reference.attend(*arrays, **static))(*arrays)
    for x, y, z in zip(run(*arrays), expected, run(*arrays), strict=True):
        close(x, y, 2e-5 if x.dtype == jnp.float32 else 2e-2)  # half precision also rounds p before p v
        assert (x == z).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
def test_kernel_over_many_blocks(causal, backend, monkeypatch):
    """Several blocks of rows and of keys: the online softmax, and the second pass for the sums (all rows and some)."""
    module, interpret = BACKENDS[backend]
    blocks = {"tpu": tpu.Blocks(2**14, 128, 128, 2**24), "gpu": gpu.Blocks(64, 32, 4, 2)}[backend]
    monkeypatch.setattr(module, "BLOCKS", {chip: blocks for chip in module.BLOCKS})
    q, k, v, bias, valid, weights = draw(0, 1, 150, 270, 2, 1, 24)
    key_bias = jnp.where(valid, bias, reference.NEGATIVE) if causal else None
    static = dict(causal=causal, scale=0.2)
    run = jax.jit(lambda *arrays: module.attend(*arrays, **static, interpret=interpret))
    expected = jax.jit(lambda *arrays: reference.attend(*arrays, **static))(q, k, v, key_bias, weights)
    for x, y in zip(run(q, k, v, key_bias, weights), expected, strict=True):
        close(x, y, 2e-5)
    some = jnp.array([3, 149, 70] * 15)
    arrays = q[:, some], k, key_bias, some[None] + 120 if causal else None, weights[:, some], expected[1][:, :, some]
    sums = jax.jit(lambda *arrays: module.column_sums(*arrays, scale=0.2, interpret=interpret))(*arrays)
    close(sums, jax.jit(lambda *arrays: reference.column_sums(*arrays, scale=0.2))(*arrays), 2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kernel_under_vmap(backend):
    module, _ = BACKENDS[backend]
    q, k, v, bias, valid, weights = draw(1, 3, 9, 17, 2, 2, 8)
    arrays = q, k, v, jnp.where(valid, bias, reference.NEGATIVE), weights
    # The TPU interpreter does not expect vmap's extra grid axis (the compiler does); the plain interpreter runs both.
    run = jax.jit(jax.vmap(lambda *x: module.attend(*(y[None] for y in x), causal=True, scale=0.3, interpret=True)))
    for x, y in zip(run(*arrays), reference.attend(*arrays, causal=True, scale=0.3), strict=True):
        close(x[:, 0], y)


def test_under_vmap_jit_and_in_batches_of_one():
    q, k, v, bias, valid, weights = draw(1, 3, 9, 17, 2, 2, 8)

    def run(q, k, v, bias, valid, weights):
        return attention_scores(q, k, v, bias=bias, valid=valid, causal=True, rows="all", row_weights=weights)

    arrays = q, k, v, bias, valid, weights
    single = jax.jit(jax.vmap(lambda *xs: run(*(x[None] for x in xs))))(*arrays)
    for x, y, z in zip(*map(jax.tree.leaves, (run(*arrays), single, jax.jit(run)(*arrays))), strict=True):
        close(y[:, 0], x, 1e-6)
        close(z, x, 1e-6)


def test_no_array_of_all_pairs():
    """At N = 2880 and 32 heads the scores are 1 GB; what the program may hold beside its arguments is far less."""
    q, k, v = SHAPES["llava-next"].arrays(jnp.float32)

    def run(q, k, v):
        return attention_scores(q, k, v, causal=True, rows="all")

    def loss(q, k, v):
        out, received, *_ = run(q, k, v)
        return jnp.sum(out) + jnp.sum(received**2)

    array = q.size * 4  # 45 MiB
    assert jax.jit(run).lower(q, k, v).compile().memory_analysis().temp_size_in_bytes < 2 * array
    assert jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile().memory_analysis().temp_size_in_bytes < 6 * array


def _scored(name):
    shape = SHAPES[name]
    return lambda q, k, v: attention_scores(q, k, v, causal=shape.causal, rows=shape.rows)


@pytest.mark.parametrize(
    ("name", "chip"), [("vit-s16-cls", "v5e"), ("vit-l14-336", "v5p"), ("llama-7b-text", "v6e"), ("llava-next", "v4")]
)
def test_compiles_for_tpu(name, chip):
    _compile(name, chip, jnp.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e"])
@pytest.mark.parametrize("name", SHAPES)
def test_compiles_for_every_tpu(name, chip, dtype, record_property):
    record_property("temp_bytes", _compile(name, chip, dtype))


def _compile(name, chip, dtype):
    """Compiles (so VMEM suffices) and takes a few copies of its arguments at most, never the pairs."""
    memory = compile_for_tpu(_scored(name), *SHAPES[name].arrays(dtype), chip=chip).memory_analysis()
    print(f"{name} {chip} {jnp.dtype(dtype).name}: {memory}")
    lanes = 128 / min(SHAPES[name].d, 128)  # narrow heads are padded to whole lanes
    # Measured: at most q, k, v and the output once more (v5p, heads before tokens) and half of that for their padding.
    # The pairs of llava-next would be 7.5 times its arguments.
    assert memory.temp_size_in_bytes <= 3 * lanes * memory.argument_size_in_bytes
    return memory.temp_size_in_bytes


@pytest.mark.parametrize("name", SHAPES)
def test_lowers_for_cuda(name):
    lowered = lower(_scored(name), *SHAPES[name].arrays(jnp.bfloat16), platform="cuda")
    rows = SHAPES[name].rows
    assert count_kernels(lowered, "cuda") == (2 if rows == "all" or len(rows) > 32 or SHAPES[name].n == 1 else 1)


def test_vmap_of_the_kernel_compiles_for_tpu():
    run = jax.vmap(lambda q, k, v: attention_scores(q[None], k[None], v[None], rows="all", implementation="pallas"))
    compile_for_tpu(run, *[jax.ShapeDtypeStruct((2, 65, 4, 32), jnp.bfloat16)] * 3)


def test_gradient_of_a_program_for_tpu_keeps_the_kernel():
    def loss(q, k, v):
        return jnp.sum(attention_scores(q, k, v, rows=0).received ** 2) + jnp.sum(attention_scores(q, k, v).out)

    lowered = lower(jax.grad(loss, (0, 1, 2)), *SHAPES["vit-s16"].arrays(jnp.bfloat16), platform="tpu")
    assert count_kernels(lowered, "tpu") >= 1


def test_floor_counts_what_is_visible():
    shape = SHAPES["vit-s16-cls"]
    work = floor(shape)
    assert work.flops == 8 * 6 * (4 * 197 * 197 * 64 + 2 * 197)
    assert work.bytes == 4 * 8 * 197 * 6 * 64 * 2 + 4 * 8 * 197
    triangle = shape._replace(causal=True, rows=None)
    assert floor(triangle).flops == 8 * 6 * 4 * 64 * (197 * 198 // 2)


BAD = {
    "row 9|rows=9 leaves the 5 query rows; pass -5 to 4": dict(rows=9),
    "pass integers": dict(rows=1.5),
    "rows='cls' is not known": dict(rows="cls"),
    "rows is .*; pass integers": dict(rows=np.zeros((3, 2), int)),
    "pass rows='all' or the query rows": dict(per_head=True),
    "implementation='triton' is not known": dict(implementation="triton"),
    "bias has shape .5.; pass .B, M. = .2, 5.": dict(bias=jnp.ones(5)),
    "valid is float32; pass booleans": dict(valid=jnp.ones((2, 5))),
    "one weight for each scored row, .2, 1.": dict(rows=0, row_weights=jnp.ones((2, 5))),
    "k .* and v .* must have one shape": dict(v=jnp.ones((2, 6, 2, 8))),
    "4 query heads cannot share 3": dict(k=jnp.ones((2, 5, 3, 8)), v=jnp.ones((2, 5, 3, 8))),
    "must agree in axes 0": dict(k=jnp.ones((1, 5, 2, 8)), v=jnp.ones((1, 5, 2, 8))),
    "pass one float dtype": dict(q=jnp.ones((2, 5, 4, 8), jnp.bfloat16)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_sentence(message):
    arguments = dict(q=jnp.ones((2, 5, 4, 8)), k=jnp.ones((2, 5, 2, 8)), v=jnp.ones((2, 5, 2, 8))) | BAD[message]
    with pytest.raises(UserError, match=message):
        attention_scores(**arguments)


@pytest.mark.parametrize("heads, key_heads", [(4, 4), (4, 2), (4, 1)])
def test_one_query_row_goes_another_way_to_the_same_result(heads, key_heads):
    """Decoding: a row by itself equals that row among others, with its log-sum-exp, scores and gradients."""
    keys = jax.random.split(jax.random.key(0), 5)
    q = jax.random.normal(keys[0], (2, 3, heads, 8))
    k, v = (jax.random.normal(key, (2, 11, key_heads, 8)) for key in keys[1:3])
    valid = jax.random.bernoulli(keys[3], 0.7, (2, 11)).at[:, 0].set(True)
    bias = jax.random.normal(keys[4], (2, 11))
    how = {"bias": bias, "valid": valid, "implementation": "xla"}
    one = attention_scores(q[:, -1:], k, v, rows="all", return_lse=True, **how)
    three = attention_scores(q, k, v, rows=(2,), return_lse=True, **how)
    np.testing.assert_allclose(one.out[:, 0], three.out[:, 2], atol=1e-5)
    np.testing.assert_allclose(one.lse[..., 0], three.lse[..., 2], atol=1e-5)
    np.testing.assert_allclose(one.received, three.received, atol=1e-5)
    weight = jnp.array([[0.5], [2.0]])
    for rows in ("all", (-1,)):
        raw = attention_scores(q[:, -1:], k, v, rows=rows, row_weights=weight, return_probabilities=True, **how)
        np.testing.assert_allclose(raw.probabilities.sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(raw.received, three.received * weight, atol=1e-5)

    def loss(k, rows):
        return jnp.square(attention_scores(rows, k, v, **how).out[:, -1]).sum()

    np.testing.assert_allclose(jax.grad(loss)(k, q[:, -1:]), jax.grad(loss)(k, q), atol=1e-5)
    nothing = attention_scores(q[:, -1:], k, v, valid=jnp.zeros_like(valid), implementation="xla")
    np.testing.assert_array_equal(nothing.out, 0)
