"""`jtok list`: the catalogue."""

from __future__ import annotations

import json
from typing import Any

from absl import flags as absl_flags

from jtok.flags import Command


def _flags(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=values)
    absl_flags.DEFINE_string("family", "", "only methods whose family contains this word", flag_values=values)


def entries(family: str = "") -> list[dict[str, Any]]:
    """One plain dict a method, in alphabetical order."""
    from jtok import registry

    rows = []
    for entry in registry.catalogue().values():
        if family not in entry.family:
            continue
        row = {name: getattr(entry, name) for name in ("name", "title", "paper", "family", "training", "assignment")}
        row |= {"reads": list(entry.reads), "site": entry.site, "idea": entry.idea}
        row |= {"options": {k: v for k, v in entry.options.items()}, "file": f"jtok/methods/{_file(entry)}"}
        row["claims"] = [vars(claim) for claim in entry.claims]
        rows.append(row)
    return rows


def _file(entry) -> str:
    return entry.plan.__module__.rsplit(".", 1)[-1] + ".py"


def _run(args, config) -> int:
    rows = entries(args.family)
    if args.json:
        print(json.dumps(rows, indent=2, default=str))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len(rows)} methods", show_lines=False)
    for column in ("method", "what it does", "paper", "family", "training", "reads", "where"):
        table.add_column(column, overflow="fold")
    for row in rows:
        reads = ", ".join(row["reads"]) or "-"
        table.add_row(row["name"], row["idea"], row["paper"], row["family"], row["training"], reads, row["site"])
    Console().print(table)
    return 0


COMMAND = Command("list", "Show the catalogue of methods.", _flags, _run)
