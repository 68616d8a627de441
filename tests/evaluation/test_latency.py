"""Timing against functions whose duration is known."""

import time

import jax
import jax.numpy as jnp
import pytest

from jtok.errors import UserError
from jtok.evaluation.cost.latency import Latency, _ratios, compare, measure


def sleeper(seconds):
    def sleep():
        time.sleep(seconds)
        return jnp.zeros(())

    return sleep


def test_measures_seconds_and_orders_the_percentiles():
    got = measure(sleeper(0.02), repeats=10, min_seconds=0)
    assert 0.02 <= got.p10 <= got.median <= got.p90
    assert got.median < 0.1
    assert got.n == 10


def test_goes_on_until_min_seconds_and_leaves_the_warm_up_out():
    calls = []

    def slow_first():
        calls.append(0)
        time.sleep(0.3 if len(calls) == 1 else 0.01)
        return jnp.zeros(())

    got = measure(slow_first, repeats=2, warmup=2, min_seconds=0.1)
    assert 2 < got.n <= 10
    assert got.p90 < 0.15
    assert len(calls) == got.n + 2


def test_waits_for_the_result_of_a_compiled_function():
    def work(x):
        return jax.lax.fori_loop(0, 50, lambda _, x: jnp.tanh(x @ x), x)

    x = jnp.ones((256, 256))
    jitted = jax.jit(work)
    jax.block_until_ready(jitted(x))
    start = time.perf_counter()
    for _ in range(3):
        jax.block_until_ready(jitted(x))
    honest = (time.perf_counter() - start) / 3
    assert measure(jitted, x, repeats=3, min_seconds=0).median > honest / 5


def test_compare_finds_the_ratio_and_its_interval():
    got = compare({"fast": (sleeper(0.03), ()), "slow": (sleeper(0.09), ())}, repeats=8, min_seconds=0)
    assert got.baseline == "fast"
    assert got.ratios["fast"].ratio == got.ratios["fast"].low == got.ratios["fast"].high == 1
    slow = got.ratios["slow"]
    assert slow.low <= slow.ratio <= slow.high
    assert slow.ratio == pytest.approx(3, rel=0.4)
    assert slow.ratio == pytest.approx(got.latencies["slow"].median / got.latencies["fast"].median)
    inverse = compare({"fast": (sleeper(0.03), ()), "slow": (sleeper(0.09), ())}, "slow", repeats=8, min_seconds=0)
    assert inverse.ratios["fast"].ratio == pytest.approx(1 / 3, rel=0.4)


def test_calls_alternate_and_the_order_rotates():
    order = []

    def named(name):
        return lambda: order.append(name) or jnp.zeros(())

    compare({name: (named(name), ()) for name in "abc"}, repeats=3, warmup=1, min_seconds=0)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"


def test_a_slow_spell_that_hits_both_leaves_the_ratio_alone():
    times = jnp.concatenate([jnp.full((10, 1), 1.0), jnp.full((10, 1), 5.0)]) * jnp.array([[1.0, 2.0]])
    ratio = _ratios(jax.device_get(times), ["a", "b"], "a")["b"]
    assert (ratio.low, ratio.ratio, ratio.high) == (2, 2, 2)


def test_throughput_is_items_per_second():
    assert Latency(0.5, 0.4, 0.6, 3).throughput(8) == 16


@pytest.mark.parametrize("wrong", [dict(repeats=0), dict(warmup=0)])
def test_refuses_to_measure_nothing(wrong):
    with pytest.raises(UserError, match="at least 1"):
        measure(sleeper(0), **wrong)


def test_refuses_an_unknown_baseline_and_an_empty_comparison():
    with pytest.raises(UserError, match="'c' is not among the functions compared: a"):
        compare({"a": (sleeper(0), ())}, baseline="c")
    with pytest.raises(UserError, match="at least one"):
        compare({})
