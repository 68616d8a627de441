"""Every op has a kernel for every platform: its program, lowered for the platform, calls one.

`OPS` names each public op of `jtok.kernels` with a call that a model makes. The list must be complete, and an op whose
backend is missing or silently hands over to the plain definition fails here.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import pytest

import jtok.kernels
from jtok.errors import UserError
from jtok.kernels.testing import count_kernels, lower

BF16 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16)
INDEX = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
QKV = (BF16((2, 197, 6, 64)),) * 3

# op -> (keyword arguments, arrays)
OPS = {
    "attention_scores": (dict(rows="all"), QKV),
    "nearest": (dict(metric="cosine"), (BF16((2, 99, 64)), BF16((2, 98, 64)))),
    "max_min_select": (dict(k=16), (BF16((2, 576, 128)),)),
    "gather": (dict(), (BF16((2, 197, 384)), INDEX((2, 64)))),
    "merge": (dict(num=64), (BF16((2, 197, 384)), INDEX((2, 197)))),
}


def _call(op: str, implementation: str | None):
    static, _ = OPS[op]
    return functools.partial(getattr(jtok.kernels, op), implementation=implementation, **static)


def test_every_public_op_is_listed():
    public = {name for name in jtok.kernels.__all__ if inspect.isfunction(getattr(jtok.kernels, name))}
    assert public == set(OPS)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("op", OPS)
def test_program_calls_the_kernel(op, platform):
    arrays = OPS[op][1]
    for implementation in (None, "pallas"):
        assert count_kernels(lower(_call(op, implementation), *arrays, platform=platform), platform) >= 1
    assert count_kernels(lower(_call(op, "xla"), *arrays, platform=platform), platform) == 0


@pytest.mark.parametrize("op", OPS)
def test_forced_kernel_fails_where_there_is_none(op):
    arrays = OPS[op][1]
    with pytest.raises(UserError, match=f"^{op}: implementation='pallas' runs only on TPU and CUDA GPUs"):
        lower(_call(op, "pallas"), *arrays, platform="cpu")
    for platform in ("tpu", "cuda"):
        assert count_kernels(lower(_call(op, None), *arrays, platform="cpu"), platform) == 0


@pytest.mark.parametrize("op", OPS)
def test_unknown_implementation_is_named(op):
    with pytest.raises(UserError, match=f"{op}: implementation='cuda' is not known"):
        jax.eval_shape(_call(op, "cuda"), *OPS[op][1])
