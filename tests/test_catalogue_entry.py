"""What adding a method must touch, checked: file, registry, README line, test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from jtok.errors import UserError
from jtok.methods import catalogue
from jtok.target import Target
from tests import readme

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(p for p in (ROOT / "jtok" / "methods").glob("*/*.py") if p.name != "__init__.py")


def test_readme_table_is_fresh():
    text = readme.README.read_text()
    assert readme.renewed(text) == text, "run `python tests/readme.py --write`"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_is_a_method(path):
    names = {m.plan.__module__.rsplit(".", 1)[-1]: m.name for m in catalogue.methods().values()}
    assert names[path.stem] == path.stem.replace("_", "-"), "the file is named after the method"
    tree = ast.parse(path.read_text())
    imports = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    imports += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert not any(m.startswith("jtok.methods") for m in imports), "a method file never imports another"
    doc = ast.get_docstring(tree)
    assert doc and any(word in doc for word in ("arXiv", "OpenReview", "aseline")), "the docstring names the paper"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_method_is_tested(path):
    """By golden vectors through an adapter, or by a test file of its own; baselines by the catalogue alone."""
    entry = next(m for m in catalogue.methods().values() if m.plan.__module__.endswith("." + path.stem))
    adapters, tests = ROOT / "tests/parity/adapters", ROOT / "tests/methods"
    own = (adapters / path.name).exists() or (tests / f"test_{path.name}").exists()
    assert own or entry.paper == "baseline"


TARGET = Target(depth=4, grid=(4, 4), width=16)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: catalogue.make_plan("tomee", TARGET), ("tomee", "tome")),
        (lambda: catalogue.make_plan("tome", TARGET, 0.0), ("0.0", "above 0")),
        (lambda: catalogue.make_plan("tome", TARGET, 1.5), ("1.5", "at most 1")),
        (lambda: catalogue.make_plan("tome", TARGET, 0.5, rr=3), ("rr", "r")),
        (lambda: catalogue.make_plan("topk", TARGET, 0.5, rates=(0.5, 2.0, 0.1)), ("2.0",)),
        (lambda: catalogue.make_plan("topk", Target(4, (4, 4), 16, has_class=False)), ("class token", "tome")),
    ],
)
def test_bad_requests_get_one_sentence(call, words):
    with pytest.raises(UserError) as error:
        call()
    said = str(error.value)
    assert "\n" not in said and all(w in said for w in words)
