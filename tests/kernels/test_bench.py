"""The benchmark of the kernels: its baselines do the op's work, and its search of block sizes finds the best row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtok.kernels
from jtok.errors import UserError
from jtok.kernels import baselines
from jtok.kernels.attention_scores.shapes import Shape as Attention
from jtok.kernels.bench import OPS, bench, find_shape, search_row, tune
from jtok.kernels.gather.shapes import Shape as Gather
from jtok.kernels.max_min_select.shapes import Shape as Select
from jtok.kernels.merge.shapes import Shape as Merge
from jtok.kernels.nearest.shapes import Shape as Nearest

torch = pytest.importorskip("torch")

CASES = [
    ("attention_scores", Attention(2, 9, 9, 4, 2, 8, rows=(0, 3))),
    ("attention_scores", Attention(2, 9, 9, 4, 4, 8, causal=True, rows="all")),
    ("attention_scores", Attention(2, 1, 9, 4, 2, 8, causal=True, rows=(-1,))),
    ("nearest", Nearest(2, 9, 7, 8, "cosine")),
    ("nearest", Nearest(2, 9, 7, 8, "l2", k=2, shared=True)),
    ("max_min_select", Select(2, 20, 6, 8)),
    ("gather", Gather(2, 9, 4, 8)),
    ("merge", Merge(2, 9, 4, 8)),
]


@pytest.mark.parametrize(("op", "shape"), CASES)
def test_baselines_do_the_same_work(op, shape):
    arrays = shape.draw(jax.random.key(1), jnp.float32)
    found = getattr(jtok.kernels, op)(*arrays, **shape.options)
    found = [np.asarray(x) for x in jax.tree.leaves(found)]
    if op == "nearest":
        found = found[1:]  # PyTorch's score is l2's up to a constant a row; the index says it all
    for name, make in baselines.TORCH[op].items():
        tensors = [torch.from_numpy(np.array(x)) for x in arrays]
        tensors = [x.long() if not x.is_floating_point() else x for x in tensors]
        theirs = make(shape)(*tensors)
        if op == "attention_scores":
            theirs = (theirs[0].transpose(1, 2), theirs[1])
        theirs = theirs[1:] if op == "nearest" else theirs
        if name.endswith("image by image"):
            theirs = torch.cat(theirs)
        theirs = theirs if isinstance(theirs, tuple) else (theirs,)
        for x, y in zip(found, theirs, strict=True):
            np.testing.assert_allclose(x, y.numpy(), rtol=1e-5, atol=1e-5)


def test_attention_as_an_array_does_the_same_work():
    shape = Attention(2, 9, 11, 4, 2, 8, causal=True, rows=(0, -1))
    arrays = shape.draw(jax.random.key(1), jnp.float32)
    out, received = baselines.JAX["attention_scores"]["materialised"](shape)(*arrays)
    found = jtok.kernels.attention_scores(*arrays, **shape.options)
    np.testing.assert_allclose(found.out, out, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.received, received, rtol=1e-5, atol=1e-5)


def test_records_hold_every_implementation():
    records = bench("nearest", "tome-vit-s16", min_seconds=0.0, roof=(1e12, 1e11))
    assert {r["implementation"] for r in records} == {"xla", "torch"}
    xla = next(r for r in records if r["implementation"] == "xla")
    module, shape = find_shape("nearest", "tome-vit-s16")
    work = module.floor(shape, itemsize=4)
    assert xla["roofline"] == pytest.approx(max(work.flops / 1e12, work.bytes / 1e11) / (xla["ms"] / 1e3))
    assert xla["p10"] <= xla["ms"] <= xla["p90"]


@pytest.mark.parametrize("op", OPS)
def test_every_op_names_its_shapes(op):
    with pytest.raises(UserError, match=f"{op} has no shape 'nowhere'; choose from ") as error:
        find_shape(op, "nowhere")
    for name in str(error.value).split("choose from ")[1].rstrip(".").split(", "):
        module, shape = find_shape(op, name)
        assert shape.arrays(jnp.float32) and module.floor(shape, itemsize=4).bytes > 0


def test_search_finds_the_fastest_row():
    best = (64, 256, 4)

    def seconds(row):
        return 1.0 + sum(abs(np.log2(x / y)) for x, y in zip(row, best, strict=True))

    assert search_row((256, 32, 4), seconds((256, 32, 4)), seconds) == (best, 1.0)
    assert search_row(best, 1.0, lambda row: float("inf")) == (best, 1.0)


def test_bad_names_are_one_sentence():
    with pytest.raises(UserError, match="kernel 'softmax' does not exist; choose from attention_scores"):
        bench("softmax", "vit-s16")
    with pytest.raises(UserError, match="there is no kernel to tune on cpu"):
        tune("nearest", "tome-vit-s16")
    with pytest.raises(UserError, match="implementation='pallas' runs only on TPU and CUDA GPUs"):
        bench("nearest", "tome-vit-s16", ["pallas"], min_seconds=0.0, roof=(1.0, 1.0))
