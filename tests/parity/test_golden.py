"""Every method against recorded outputs of its reference code."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.parity.case import Case, check, difference, slugs


def test_golden(case, report):
    line = [case.slug, case.component, case.path.name, None]
    report.append(line)
    line[-1] = check(case)


def test_unknown_component_fails_by_name(tmp_path):
    slug = sorted(slugs())[0]
    path = tmp_path / "made-up.npz"
    np.savez(path, meta=json.dumps({"slug": slug, "component": "no-such-part", "params": {}}))
    with pytest.raises(AssertionError, match=f"made-up.npz: {slug} has no component 'no-such-part'"):
        check(Case(path))


def test_difference_sees_what_must_differ():
    want = np.array([1.0, -np.inf, 2.0], np.float32)
    assert difference("x", want, want, 0, 0) == 0
    with pytest.raises(AssertionError, match="shape"):
        difference("x", want[:1], want, 0, 1)
    with pytest.raises(AssertionError):
        difference("x", np.array([1.0, -9e9, 2.0]), want, 0, 1)
    with pytest.raises(AssertionError):
        difference("x", np.array([1.0, -np.inf, 2.1]), want, 0, 0.01)
    with pytest.raises(AssertionError, match="1 of 2 entries differ"):
        difference("i", np.array([3, 4]), np.array([3, 5]), 0, 10)
