"""`pytest tests/parity --golden DIR`: every golden vector in DIR through the adapter of its method."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import jax
import pytest

from tests.parity.case import Case, slugs

HERE = Path(__file__).parents[1] / "golden"
RESULTS = pytest.StashKey[list]()
UNBUILT = pytest.StashKey[Counter]()


def pytest_addoption(parser):
    parser.addoption("--golden", metavar="DIR", default=None, help="golden vectors to check (default: tests/golden)")


def pytest_configure(config):
    config.stash[RESULTS] = []
    config.stash[UNBUILT] = Counter()


def pytest_generate_tests(metafunc):
    if "case" not in metafunc.fixturenames:
        return
    config = metafunc.config
    folder = Path(config.getoption("--golden", None) or HERE)
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise pytest.UsageError(f"there are no golden vectors (*.npz) in {folder}: name a directory that holds some.")
    cases, built = [Case(path) for path in files], slugs()
    unbuilt = Counter(case.slug for case in cases if case.slug not in built)
    config.stash[UNBUILT] = unbuilt
    cases = [case for case in cases if case.slug in built]
    metafunc.parametrize("case", cases, ids=[f"{c.slug}-{c.component}-{c.path.stem}" for c in cases])


@pytest.fixture(autouse=True)
def exact_products():
    """Float32 products at full precision, as the recorded code computed them."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def report(request):
    """A list that collects one line per case for the summary: (slug, component, file, largest error)."""
    return request.config.stash[RESULTS]


def pytest_terminal_summary(terminalreporter, config):
    results, unbuilt = config.stash.get(RESULTS, []), config.stash.get(UNBUILT, Counter())
    if not results and not unbuilt:
        return
    terminalreporter.section("golden vectors")
    for slug, component, name, error in results:
        outcome = "FAILED" if error is None else f"max error {error:.1e}"
        terminalreporter.line(f"{slug:<18} {component:<14} {name:<34} {outcome}")
    passed = sum(error is not None for *_, error in results)
    terminalreporter.line(f"{passed} passed, {len(results) - passed} failed")
    if unbuilt:
        names = ", ".join(f"{slug} ({n})" if n > 1 else slug for slug, n in sorted(unbuilt.items()))
        terminalreporter.line(f"{unbuilt.total()} files of {len(unbuilt)} methods not built yet: {names}")
