"""What one equation of a jaxpr costs: the rule of every primitive that holds no other jaxpr.

The rules are stated in words in `jtok.evaluation.cost.flops.CONVENTIONS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

ELEMENTWISE = frozenset(
    "abs acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp cos cosh digamma div "
    "eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac integer_pow is_finite le le_to "
    "lgamma log log1p logistic lt lt_to max min mul ne neg nextafter polygamma pow regularized_incomplete_beta rem "
    "round rsqrt select_n sign sin sinh sqrt square sub tan tanh zeta addupdate".split()
)
REDUCTIONS = frozenset(
    "argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce reduce_max reduce_min reduce_prod reduce_sum "
    "reduce_and reduce_or reduce_xor".split()
)
FREE = frozenset(
    "after_all all_gather all_to_all and axis_index bitcast_convert_type broadcast broadcast_in_dim clz complex "
    "concatenate conj convert_element_type copy copy_p create_token device_put dynamic_slice dynamic_update_slice "
    "empty empty2 expand_dims gather get imag iota mulhi name not optimization_barrier or pad pbroadcast pcast "
    "platform_index pmax pmin population_count ppermute program_id num_programs psum psum_invariant pvary "
    "random_bits random_clone random_fold_in random_seed random_split random_unwrap random_wrap real "
    "reduce_precision reduce_scatter reshape rev rng_bit_generator scatter sharding_constraint shift_left "
    "shift_right_arithmetic shift_right_logical slice split squeeze stack stop_gradient swap threefry2x32 tile "
    "transpose unstack xor debug_callback debug_print masked_load masked_swap load multiple_of".split()
)


class Cost(NamedTuple):
    """FLOPs, multiply-adds (MACs) and bytes moved, all for one call of the function."""

    flops: int
    macs: int
    bytes: int


def equation_cost(eqn: JaxprEqn) -> tuple[str, Cost] | None:
    """Category ("matmul", "elementwise" or "other") and cost of one equation; None for a primitive without a rule."""
    name = eqn.primitive.name
    if name in FREE:
        return "other", Cost(0, 0, 0)
    if name in ELEMENTWISE or name in REDUCTIONS:
        variable = eqn.invars[0] if name in REDUCTIONS else eqn.outvars[0]
        return "elementwise", Cost(elements(variable) if floating(eqn.invars) else 0, 0, 0)
    if name in _MATMULS:
        macs = _MATMULS[name](eqn)
        return "matmul", Cost(2 * macs, macs, bytes_moved(eqn))
    if name in _WINDOWED:
        window = math.prod(eqn.params["window_dimensions"])
        return "elementwise", Cost(elements(eqn.outvars[0]) * window if floating(eqn.invars) else 0, 0, 0)
    if name in _OTHER:
        return "other", Cost(_OTHER[name](eqn), 0, 0)
    return None


def elements(var: Any) -> int:
    return math.prod(var.aval.shape)


def floating(variables: Iterable[Any]) -> bool:
    return any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in variables if hasattr(v.aval, "dtype"))


def bytes_moved(eqn: JaxprEqn) -> int:
    return sum(elements(v) * v.aval.dtype.itemsize for v in (*eqn.invars, *eqn.outvars))


def _dot_macs(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return elements(eqn.outvars[0]) * math.prod(lhs[d] for d in contracted)


def _conv_macs(eqn: JaxprEqn) -> int:
    kernel = eqn.invars[1].aval.shape
    out_channels = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    # The kernel's input axis already holds input channels / feature groups. A transposed convolution spreads its input
    # out with zeros, which no implementation multiplies.
    holes = math.prod(eqn.params["lhs_dilation"])
    return elements(eqn.outvars[0]) * math.prod(kernel) // out_channels // holes


def _ragged_dot_macs(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    lhs = eqn.invars[0].aval.shape
    return elements(eqn.outvars[0]) * math.prod(lhs[d] for d in contracted)


def _sort(eqn: JaxprEqn) -> int:
    keys = eqn.invars[: eqn.params["num_keys"]]
    n = keys[0].aval.shape[eqn.params["dimension"]]
    return sum(elements(key) * math.ceil(math.log2(max(n, 1))) for key in keys if floating([key]))


def _top_k(eqn: JaxprEqn) -> int:
    return elements(eqn.invars[0]) * math.ceil(math.log2(eqn.params["k"] + 1)) if floating(eqn.invars[:1]) else 0


def _updates(eqn: JaxprEqn) -> int:
    return elements(eqn.invars[2]) if floating(eqn.invars) else 0


def _fft(eqn: JaxprEqn) -> int:
    n = math.prod(eqn.params["fft_lengths"])
    # A real transform has one real end; the larger of the two ends is the length of the rows transformed.
    return math.ceil(5 * max(elements(eqn.invars[0]), elements(eqn.outvars[0])) * math.log2(max(n, 2)))


def _cube(scale: float) -> Callable[[JaxprEqn], int]:
    return lambda eqn: round(scale * elements(eqn.invars[0]) * eqn.invars[0].aval.shape[-1])


def _triangular_solve(eqn: JaxprEqn) -> int:
    return elements(eqn.invars[1]) * eqn.invars[0].aval.shape[-1]


_WINDOWED = frozenset(("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"))
_MATMULS = {
    "dot_general": _dot_macs,
    "conv_general_dilated": _conv_macs,
    "ragged_dot_general": _ragged_dot_macs,
}
# spelled with a dash or an underscore, by the version of JAX
_ACCUMULATING = [f"scatter{dash}{what}" for dash in "-_" for what in ("add", "sub", "mul", "min", "max")]
_OTHER = {
    "sort": _sort,
    "top_k": _top_k,
    "approx_top_k": _top_k,
    **dict.fromkeys(_ACCUMULATING, _updates),
    "fft": _fft,
    "cholesky": _cube(1 / 3),
    "lu": _cube(2 / 3),
    "triangular_solve": _triangular_solve,
}
