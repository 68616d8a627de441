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
    from jtok.methods import catalogue

    rows = []
    for entry in catalogue.methods().values():
        if family not in entry.family:
            continue
        row = {name: getattr(entry, name) for name in ("name", "title", "paper", "family", "training", "assignment")}
        facts = catalogue.facts(entry.name)
        row |= {"reads": list(facts.reads), "site": entry.site, "idea": entry.idea}
        row |= {"needs": list(facts.needs), "stages": list(facts.stages), "slots": list(facts.slots)}
        row |= {"adaptive": facts.adaptive, "learned": facts.learned, "alone": facts.alone}
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
    from rich.padding import Padding
    from rich.text import Text

    console, width = Console(), max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        reads = f"; reads {', '.join(row['reads'])}" if row["reads"] else ""
        adaptive = "; as many tokens as the image asks for" if row["adaptive"] else ""
        trained = {"none": "no training", "optional": "may be trained", "required": "trained"}[row["training"]]
        console.print(Text.assemble((f"{row['name']:<{width}}  ", "bold"), row["idea"]))
        facts = Text(f"{row['paper']}; {row['family']}, {trained}; {row['site']}{reads}{adaptive}", style="dim")
        console.print(Padding(facts, (0, 0, 0, width + 2)))
    console.print(f"{len(rows)} methods; --json gives all that is known of each, --family=vlm those of a family")
    return 0


COMMAND = Command("list", "Show the catalogue of methods.", _flags, _run)
