"""The rooms of `jtok/` are stacked: none imports one above it, and no module takes part in an import cycle.

Lazy imports and those under `TYPE_CHECKING` count as well: what knows of each other belongs together.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "jtok"

#: From the bottom up; rooms in one line do not import each other.
STACK = (
    ("errors", "files", "version"),
    ("kernels",),
    ("compile_cache", "config_file", "distributed", "ops", "sharding"),
    ("contract",),
    ("checkpoints",),
    ("layers",),
    ("data",),
    ("models",),
    ("methods",),
    ("catalogue",),
    ("tokenizers",),
    ("training", "viz"),
    ("evaluation",),
    ("export",),
    ("flags",),
    ("commands",),
    ("cli",),
    ("launch",),
)
#: The modules at the top of the package that are the contract between models and methods.
CONTRACT = ("tokens", "signals", "sites", "reducer", "target", "cache", "slots", "learned", "plan", "pruner")
CONTRACT += ("registry", "wrappers")
FAMILIES = "jtok.models.vlm.families"
LEVEL = {room: level for level, rooms in enumerate(STACK) for room in rooms}


def modules() -> dict[str, set[str]]:
    """Module -> the modules of jtok that it imports, at any depth of its code."""
    files = {path: ".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in ROOT.rglob("*.py")}
    files = {path: name.removesuffix(".__init__") for path, name in files.items() if "kernels" not in path.parts}
    known = set(files.values())
    graph = {}
    for path, name in files.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jtok":
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name] |= {one if one in known else node.module for one in whole}
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names if alias.name.split(".")[0] == "jtok"}
        graph[name] -= {name}
    records = {name for name in known if name.startswith(f"{FAMILIES}.") and name.endswith(".family")}
    graph[f"{FAMILIES}.all"] |= records  # imported by name
    return graph


def room(module: str) -> str | None:
    """The room that a module lies in; None for the package itself, which only forwards names."""
    if module in ("jtok", "jtok.__main__"):
        return None
    first = module.split(".")[1]
    return "contract" if first in CONTRACT else first


@pytest.fixture(scope="module")
def graph():
    return modules()


def test_every_room_has_its_place_in_the_stack(graph):
    assert {room(module) for module in graph} - {None} <= LEVEL.keys()


def test_no_room_imports_one_above_it(graph):
    wrong = [
        f"{module} ({room(module)}) imports {other} ({room(other)})"
        for module, others in graph.items()
        for other in others
        if room(module) and room(other) and room(module) != room(other) and LEVEL[room(other)] >= LEVEL[room(module)]
    ]
    assert not wrong, "\n".join(sorted(wrong))


def test_no_module_takes_part_in_a_cycle(graph):
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
