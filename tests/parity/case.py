"""One golden vector: arrays recorded from reference code, and what to compare with them."""

from __future__ import annotations

import dataclasses
import importlib
import json
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ADAPTERS = Path(__file__).with_name("adapters")


@dataclasses.dataclass(frozen=True)
class Case:
    """The content of one `.npz` file; its keys are described in the README of the golden vectors."""

    path: Path

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path, allow_pickle=False) as file:
            return dict(file)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The recorder's notes: slug, component, method, params, ..."""
        with np.load(self.path, allow_pickle=False) as file:
            return json.loads(str(file["meta"]))

    @property
    def slug(self) -> str:
        """Which method."""
        return self.meta["slug"]

    @property
    def component(self) -> str:
        """Which function or module of the method."""
        return self.meta["component"]

    @property
    def params(self) -> dict[str, Any]:
        """Scalar arguments of the recorded call."""
        return self.meta["params"]

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """`in_*` without the prefix; weights are called `param/<state-dict name>`."""
        return {k[3:]: v for k, v in self._arrays.items() if k.startswith("in_")}

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights among the inputs, by their state-dict name."""
        return {k[6:]: v for k, v in self.inputs.items() if k.startswith("param/")}

    @cached_property
    def outputs(self) -> dict[str, np.ndarray]:
        """`out_*` without the prefix."""
        return {k[4:]: v for k, v in self._arrays.items() if k.startswith("out_")}


def difference(name: str, got: Any, want: np.ndarray, rtol: float, atol: float) -> float:
    """Largest absolute difference; raises AssertionError if shapes differ or it exceeds atol + rtol * |want|.

    Integers and booleans must be equal. Infinities and NaN must be in the same places.
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{name}: shape {got.shape}, recorded {want.shape}"
    if want.dtype.kind in "biu":
        assert np.array_equal(got, want), f"{name}: {int((got != want).sum())} of {want.size} entries differ"
        return 0.0
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=name)
    finite = np.isfinite(want)
    return float(np.abs(got[finite].astype(np.float64) - want[finite]).max(initial=0.0))


def slugs() -> set[str]:
    """Methods that have an adapter: adapters/dpc_knn.py serves the slug dpc-knn."""
    return {path.stem.replace("_", "-") for path in ADAPTERS.glob("*.py") if path.stem != "__init__"}


def adapter(slug: str) -> ModuleType:
    """The adapter module of a method."""
    module = importlib.import_module(f"tests.parity.adapters.{slug.replace('-', '_')}")
    assert module.SLUG == slug, f"{module.__name__} calls itself {module.SLUG}, its file name says {slug}"
    return module


def check(case: Case) -> float:
    """Runs a case through its adapter and returns the largest error; raises AssertionError where they disagree.

    An adapter module holds `SLUG`, `COMPONENTS` (component -> function of the case that returns its outputs by name;
    more than the file holds is no error), `TOLERANCE` (component -> (rtol, atol)) and, where outputs are defined only
    up to an order or a partition, `compare(case, got) -> largest error`, which takes the place of `difference`.
    """
    module = adapter(case.slug)
    known = ", ".join(sorted(module.COMPONENTS))
    assert case.component in module.COMPONENTS, (
        f"{case.path.name}: {case.slug} has no component '{case.component}'; its adapter knows {known}"
    )
    got = module.COMPONENTS[case.component](case)
    missing = sorted(set(case.outputs) - set(got))
    assert not missing, f"{case.path.name}: the adapter of {case.slug} {case.component} gave no {', '.join(missing)}"
    if hasattr(module, "compare"):
        return float(module.compare(case, got))
    tolerance = module.TOLERANCE[case.component]
    return max(difference(name, got[name], want, *tolerance) for name, want in case.outputs.items())
