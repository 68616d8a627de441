"""Wall-clock time of compiled functions: medians with their spread, and fair ratios between several.

Two functions timed one after the other are compared across whatever the machine did in between; `compare` times them in
alternation, call by call, and resamples whole rounds for the interval of each ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jtok.errors import UserError


@dataclass(frozen=True)
class Latency:
    """Seconds per call: median, 10th and 90th percentile over `n` timed calls."""

    median: float
    p10: float
    p90: float
    n: int

    def throughput(self, batch: int) -> float:
        """Items per second when one call handles `batch` items."""
        return batch / self.median


@dataclass(frozen=True)
class Ratio:
    """Ratio of median times, this function over the baseline (below 1 = faster), with its 95% bootstrap interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Latencies (seconds) by name, and for every name the ratio to the `baseline`, which has the ratio 1."""

    baseline: str
    latencies: dict[str, Latency]
    ratios: dict[str, Ratio]


def measure(
    fn: Callable, *args: Any, repeats: int = 30, warmup: int = 3, min_seconds: float = 0.5, **kwargs: Any
) -> Latency:
    """Time `fn(*args, **kwargs)`, which is called as it is: pass a jitted function to time the compiled program.

    Args:
        fn: returns a pytree of arrays; each call is timed until all of them are ready.
        repeats: least number of timed calls, at least 1.
        warmup: untimed calls before (the first compiles), at least 1.
        min_seconds: timing continues until this much time, in seconds, has been spent in timed calls.

    Raises:
        UserError: `repeats` or `warmup` below 1.
    """
    times = _rounds([lambda: fn(*args, **kwargs)], repeats, warmup, min_seconds)
    return _latency(times[:, 0])


def compare(
    cases: Mapping[str, tuple[Callable, Sequence[Any]]],
    baseline: str | None = None,
    repeats: int = 30,
    warmup: int = 3,
    min_seconds: float = 0.5,
) -> Comparison:
    """Time several functions in alternation, one call each a round, the order rotating from round to round.

    Args:
        cases: name -> (function, its positional arguments); functions as in `measure`.
        baseline: the name that ratios refer to; the first when None.
        repeats, warmup: rounds, as in `measure`.
        min_seconds: least time, in seconds, spent in timed calls of each function on average.

    Raises:
        UserError: no cases, a baseline that is not among them, or `repeats` or `warmup` below 1.
    """
    names = list(cases)
    if not names:
        raise UserError("nothing to compare: give at least one named function")
    baseline = names[0] if baseline is None else baseline
    if baseline not in cases:
        raise UserError(f"the baseline {baseline!r} is not among the functions compared: {', '.join(names)}")
    calls = [lambda fn=fn, args=args: fn(*args) for fn, args in cases.values()]
    times = _rounds(calls, repeats, warmup, min_seconds)
    latencies = {name: _latency(times[:, i]) for i, name in enumerate(names)}
    return Comparison(baseline, latencies, _ratios(times, names, baseline))


def _rounds(calls: list[Callable[[], Any]], repeats: int, warmup: int, min_seconds: float) -> np.ndarray:
    """Seconds `[rounds, calls]`."""
    if repeats < 1 or warmup < 1:
        raise UserError(f"repeats and warmup must be at least 1, not {repeats} and {warmup}")
    for call in calls * warmup:
        jax.block_until_ready(call())
    rounds: list[list[float]] = []
    spent = 0.0
    while len(rounds) < repeats or spent < min_seconds * len(calls):
        row = [0.0] * len(calls)
        for step in range(len(calls)):
            # Whoever follows a heavy neighbour finds colder caches; rotation shares that out.
            which = (step + len(rounds)) % len(calls)
            start = time.perf_counter()
            jax.block_until_ready(calls[which]())
            row[which] = time.perf_counter() - start
        rounds.append(row)
        spent += sum(row)
    return np.array(rounds)


def _latency(times: np.ndarray) -> Latency:
    p10, median, p90 = (float(t) for t in np.percentile(times, (10, 50, 90)))
    return Latency(median, p10, p90, len(times))


def _ratios(times: np.ndarray, names: list[str], baseline: str, resamples: int = 1000) -> dict[str, Ratio]:
    base = names.index(baseline)
    rows = np.random.default_rng(0).integers(len(times), size=(resamples, min(len(times), 1000)))
    resampled = np.median(times[rows], axis=1)  # [resamples, calls]; whole rounds, so that slow spells stay paired
    low, high = np.percentile(resampled / resampled[:, base : base + 1], (2.5, 97.5), axis=0)
    medians = np.median(times, axis=0)
    return {
        name: Ratio(float(medians[i] / medians[base]), float(low[i]), float(high[i])) for i, name in enumerate(names)
    }
