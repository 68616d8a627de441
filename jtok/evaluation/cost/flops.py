"""FLOPs counted from the jaxpr: one audited place, with every convention written down.

The compiler's own `cost_analysis` counts the body of a scan once and a Pallas call not at all, and published counters
disagree on what an operation is. This one walks the jaxpr, and these are its rules (`CONVENTIONS`, also returned with
every count):

"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jtok.evaluation.cost.operations import REDUCTIONS, Cost, bytes_moved, equation_cost, floating
from jtok.evaluation.cost.scopes import below, join, scope_of

CONVENTIONS = (
    "A multiply-add is 2 FLOPs and 1 MAC. Papers on vision transformers mostly print MACs and call them FLOPs: "
    "`macs` is the number to hold beside theirs.",
    "matmul: dot_general 2*batch*m*n*k; convolution 2*output*kernel*(input channels/groups), padding counted, "
    "the zeros that a transposed convolution inserts not; a ragged dot 2*m*n*k. Integer matmuls count alike.",
    "elementwise: 1 per output element when an operand is floating, whatever the function (add, exp, erf, rsqrt, "
    "compare, select, ...); reductions and cumulative operations 1 per input element; windowed reductions 1 per output "
    "element and window element. Integer and boolean arithmetic is free.",
    "other: sort n*ceil(log2 n) comparisons per row of floating keys; top_k n*ceil(log2(k+1)) per row; scatter-add and "
    "its like 1 per update element; FFT 5*n*log2 n; Cholesky n^3/3, LU 2n^3/3, triangular solve n^2 per right side.",
    "Free: reshape, transpose, broadcast, slice, gather, scatter, pad, concatenate, casts, random bits, communication.",
    "kernel: a Pallas call counts what its `cost_estimate` states (flops + transcendentals), half its flops taken as "
    "MACs. One that states nothing is counted from its body times its grid and named in `unstated_kernels`.",
    "A scan counts its body times its length. A while loop over an integer `i < constant` counts its trips; any "
    "other counts one trip and is named in `unbounded_loops`.",
    "A cond or switch counts its most expensive branch. `platform_dependent` counts the branch of the platform asked "
    "for, else the default branch, else the last.",
    "shard_map counts all shards together.",
    "Equations whose results nobody reads are not counted (inside a scan, while, cond or custom-derivative call all "
    "are). Equal subexpressions count each time, although a compiler may share them.",
    "Primitives without a rule count 0 and are named in `uncounted`.",
    "bytes: operands and results of matmuls once each, plus the bytes that kernels state; everything else is taken as "
    "fused. A lower bound on traffic, not a measurement.",
)
__doc__ += "\n".join(f"- {rule}" for rule in CONVENTIONS)


@dataclass(frozen=True)
class FlopCount:
    """What one call costs. `flops = matmul + elementwise + other + kernel`; bytes in bytes; nothing in thousands.

    `by_scope` maps each `jax.named_scope` path ("tower.block.3/attention"; "" = outside all) to the cost of the
    equations directly in it, `by_primitive` does the same for primitives. `unbounded_loops` holds the scope
    paths of loops counted once, `unstated_kernels` the names of Pallas calls without a cost estimate, `uncounted` the
    primitives without a rule.
    """

    flops: int
    macs: int
    bytes: int
    matmul: int
    elementwise: int
    other: int
    kernel: int
    by_primitive: dict[str, Cost]
    by_scope: dict[str, Cost]
    unbounded_loops: tuple[str, ...] = ()
    unstated_kernels: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    conventions: tuple[str, ...] = field(default=CONVENTIONS, repr=False)

    @property
    def gflops(self) -> float:
        """Billions of FLOPs (two per multiply-add)."""
        return self.flops / 1e9

    @property
    def gmacs(self) -> float:
        """Billions of multiply-adds: what most papers print as GFLOPs."""
        return self.macs / 1e9

    def within(self, scope: str) -> Cost:
        """The cost of a scope and all below it, wherever it occurs: `within("tower.block.3")`. Zero if absent."""
        return _sum(cost for path, cost in self.by_scope.items() if below(path, scope))


def count(fn: Callable, *args: Any, **kwargs: Any) -> FlopCount:
    """Count one call of `fn(*args, **kwargs)` without running it.

    Args:
        fn: a traceable function. Arguments that are not arrays must be bound beforehand (`functools.partial`).
        args, kwargs: pytrees of arrays or `jax.ShapeDtypeStruct`s; the latter cost no memory, so that a model made by
            `jax.eval_shape` is counted without weights.
    """
    return count_jaxpr(jax.make_jaxpr(fn)(*args, **kwargs))


def count_jaxpr(closed: Any, platform: str | None = None) -> FlopCount:
    """Count a (closed) jaxpr; `platform` ("cpu", "cuda", "tpu", ...) picks the branches of `platform_dependent`."""
    jaxpr = _open(closed)
    tally = _Tally(platform)
    tally.walk(jaxpr, "", 1, [True] * len(jaxpr.outvars))
    return tally.result()


class _Tally:
    """Costs by (scope, primitive, category) while the jaxpr is walked."""

    def __init__(self, platform: str | None):
        self.platform = platform
        self.costs: dict[tuple[str, str, str], Cost] = {}
        self.loops: dict[str, None] = {}
        self.unstated: dict[str, None] = {}
        self.uncounted: dict[str, None] = {}

    def add(self, key: tuple[str, str, str], cost: Cost, times: int = 1) -> None:
        old = self.costs.get(key, Cost(0, 0, 0))
        self.costs[key] = Cost(*(a + times * b for a, b in zip(old, cost, strict=True)))

    def merge(self, other: _Tally) -> None:
        for key, cost in other.costs.items():
            self.add(key, cost)
        for name in ("loops", "unstated", "uncounted"):
            getattr(self, name).update(getattr(other, name))

    def walk(self, jaxpr: Jaxpr, scope: str, times: int, live_out: list[bool]) -> list[bool]:
        """Count the equations that the live outputs need, `times` over; returns which inputs they need."""
        live = {v for v, wanted in zip(jaxpr.outvars, live_out, strict=True) if wanted and not isinstance(v, Literal)}
        for eqn in reversed(jaxpr.eqns):
            wanted = [v in live for v in eqn.outvars]
            if not any(wanted) and not eqn.effects:
                continue
            needed = self.equation(eqn, join(scope, scope_of(eqn)), times, wanted)
            live.update(v for v, use in zip(eqn.invars, needed, strict=True) if use and not isinstance(v, Literal))
        return [v in live for v in jaxpr.invars]

    def equation(self, eqn: JaxprEqn, scope: str, times: int, wanted: list[bool]) -> list[bool]:
        """Count one equation; returns which of its inputs are needed for the wanted outputs."""
        name = eqn.primitive.name
        if name in ("jit", "pjit"):
            return self.walk(_open(eqn.params["jaxpr"]), scope, times, wanted)
        structured = _STRUCTURED.get(name)
        inner = next((eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params), None)
        if structured is not None:
            structured(self, eqn, scope, times)
        elif name in REDUCTIONS or inner is None:
            self.leaf(eqn, scope, times)
        else:
            self.whole(inner, scope, times)
        return [True] * len(eqn.invars)

    def whole(self, inner: Any, scope: str, times: int) -> None:
        """Count an inner jaxpr with all its outputs wanted."""
        jaxpr = _open(inner)
        self.walk(jaxpr, scope, times, [True] * len(jaxpr.outvars))

    def leaf(self, eqn: JaxprEqn, scope: str, times: int) -> None:
        rule = equation_cost(eqn)
        if rule is None:
            self.uncounted[eqn.primitive.name] = None
        elif rule[1] != Cost(0, 0, 0):
            self.add((scope, eqn.primitive.name, rule[0]), rule[1], times)

    def scan(self, eqn: JaxprEqn, scope: str, times: int) -> None:
        self.whole(eqn.params["jaxpr"], scope, times * eqn.params["length"])

    def while_loop(self, eqn: JaxprEqn, scope: str, times: int) -> None:
        trips = _trips(eqn)
        if trips is None:
            self.loops[scope] = None
            trips = 1
        self.whole(eqn.params["cond_jaxpr"], scope, times * (trips + 1))
        self.whole(eqn.params["body_jaxpr"], scope, times * trips)

    def cond(self, eqn: JaxprEqn, scope: str, times: int) -> None:
        branches = eqn.params["branches"]
        platforms = eqn.params.get("branches_platforms")
        if platforms is not None:
            self.whole(branches[_platform_branch(platforms, self.platform)], scope, times)
            return
        tallies = []
        for branch in branches:
            tally = _Tally(self.platform)
            tally.whole(branch, scope, times)
            tallies.append(tally)
        self.merge(max(tallies, key=lambda tally: _sum(tally.costs.values()).flops))

    def shard_map(self, eqn: JaxprEqn, scope: str, times: int) -> None:
        mesh = eqn.params["mesh"]
        # The parameter's name differs between JAX releases.
        manual = next((eqn.params[k] for k in ("manual_axes", "newly_manual_axes") if k in eqn.params), mesh.axis_names)
        shards = math.prod(mesh.shape[axis] for axis in manual)
        self.whole(eqn.params["jaxpr"], scope, times * shards)

    def linear_solve(self, eqn: JaxprEqn, scope: str, times: int) -> None:
        self.whole(eqn.params["jaxprs"].solve, scope, times)  # the other jaxprs serve differentiation

    def kernel(self, eqn: JaxprEqn, scope: str, times: int) -> None:
        stated = eqn.params.get("cost_estimate")
        if stated is not None:
            cost = Cost(stated.flops + stated.transcendentals, stated.flops // 2, stated.bytes_accessed)
        else:
            name = eqn.params.get("name") or scope or "pallas_call"
            self.unstated[str(name)] = None
            body = _Tally(self.platform)
            body.whole(eqn.params["jaxpr"], scope, 1)
            steps = math.prod(n for n in eqn.params["grid_mapping"].grid if isinstance(n, int))
            once = _sum(body.costs.values())
            cost = Cost(once.flops * steps, once.macs * steps, bytes_moved(eqn))
        self.add((scope, "pallas_call", "kernel"), cost, times)

    def result(self) -> FlopCount:
        total = _sum(self.costs.values())
        category = {
            kind: _sum(cost for key, cost in self.costs.items() if key[2] == kind).flops
            for kind in ("matmul", "elementwise", "other", "kernel")
        }
        return FlopCount(
            *total,
            **category,
            by_primitive=_grouped(self.costs, 1),
            by_scope=_grouped(self.costs, 0),
            unbounded_loops=tuple(sorted(self.loops)),
            unstated_kernels=tuple(sorted(self.unstated)),
            uncounted=tuple(sorted(self.uncounted)),
        )


_STRUCTURED = {
    "scan": _Tally.scan,
    "while": _Tally.while_loop,
    "cond": _Tally.cond,
    "shard_map": _Tally.shard_map,
    "custom_linear_solve": _Tally.linear_solve,
    "pallas_call": _Tally.kernel,
}


def _sum(costs: Iterable[Cost]) -> Cost:
    rows = list(costs)
    return Cost(*(sum(column) for column in zip(*rows, strict=True))) if rows else Cost(0, 0, 0)


def _grouped(costs: dict[tuple[str, str, str], Cost], index: int) -> dict[str, Cost]:
    names = sorted({key[index] for key in costs})
    return {name: _sum(cost for key, cost in costs.items() if key[index] == name) for name in names}


def _open(jaxpr: Any) -> Jaxpr:
    """The jaxpr inside a closed one, or itself."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _platform_branch(platforms: tuple, wanted: str | None) -> int:
    named = [i for i, names in enumerate(platforms) if names is not None and wanted in names]
    default = [i for i, names in enumerate(platforms) if names is None]
    return (named + default + [len(platforms) - 1])[0]


def _trips(eqn: JaxprEqn) -> int | None:
    """Trips of a while loop that counts from a constant by a constant up to a constant; None for any other."""
    test, body = _open(eqn.params["cond_jaxpr"]), _open(eqn.params["body_jaxpr"])
    n_test, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    if len(test.eqns) != 1 or test.eqns[0].primitive.name != "lt":
        return None
    counter, stop = test.eqns[0].invars
    if counter not in test.invars[n_test:] or not isinstance(stop, Literal) or floating([counter]):
        return None
    slot = test.invars.index(counter) - n_test
    start = eqn.invars[n_test + n_body + slot]
    step = next((e for e in body.eqns if e.outvars[0] is body.outvars[slot] and e.primitive.name == "add"), None)
    if step is None or step.invars[0] is not body.invars[n_body + slot]:
        return None
    if not isinstance(start, Literal) or not isinstance(step.invars[1], Literal) or step.invars[1].val <= 0:
        return None
    return max(0, math.ceil((int(stop.val) - int(start.val)) / int(step.invars[1].val)))
