"""The README's worked example of a new method runs as it stands."""

from __future__ import annotations

import re

import jax
import numpy as np

from jtok import registry
from jtok.methods import catalogue
from tests.methods import catalogue as c
from tests.readme import README


def test_the_worked_example_is_a_method(monkeypatch):
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    monkeypatch.setattr(catalogue, "METHODS", registry.METHODS)
    code = re.search(r'```python\n("""Key norm.*?)```', README.read_text(), re.DOTALL)[1]
    assert code.count("\n") <= 45, "the README promises about 40 lines"
    exec(compile(code, "README.md", "exec"), {"__name__": "jtok_readme_example"})
    plan = catalogue.make_plan("key-norm", c.CONFIG.target(), 0.25)
    out = jax.jit(lambda x: c.tower()(x, plan))(c.images())
    assert out.tokens.patches == 9
    assert np.isfinite(out.logits).all()
    assert set(out.stages) == set(map(str, plan.sites))
