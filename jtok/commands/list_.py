"""`jtok list`: the catalogue of methods and of image tokenizers."""

from __future__ import annotations

import json
from typing import Any

from absl import flags as absl_flags

from jtok.flags import Command

#: What the counts and the bases of tokenizers are called in the table.
COUNTS = {
    "fixed": "a fixed number of tokens",
    "prefix": "any prefix is a code",
    "rounds": "more tokens in each round",
    "adaptive": "as many tokens as the image needs",
}
BASES = {"none": "on pixels", "vae": "on a frozen VAE", "base": "on a frozen 2-D tokenizer"}


def _flags(values: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_bool("json", False, "print JSON instead of a table", flag_values=values)
    absl_flags.DEFINE_string(
        "family", "", "only methods and tokenizers whose family contains this word", flag_values=values
    )


def entries(family: str = "") -> list[dict[str, Any]]:
    """One plain dict per method, in alphabetical order."""
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


def tokenizer_entries(family: str = "") -> list[dict[str, Any]]:
    """One plain dict per image tokenizer, in alphabetical order."""
    from jtok.tokenizers import registry

    fields = ("name", "title", "paper", "family", "training", "counts", "base", "generator", "idea", "kind", "file")
    rows = []
    for entry in registry.tokenizers().values():
        if family in entry.family:
            row = {name: getattr(entry, name) for name in fields}
            rows.append(row | {"claims": [vars(claim) for claim in entry.claims]})
    return rows


def _file(entry) -> str:
    return entry.plan.__module__.rsplit(".", 1)[-1] + ".py"


def _run(args, config) -> int:
    rows, coders = entries(args.family), tokenizer_entries(args.family)
    if args.json:
        print(json.dumps({"methods": rows, "tokenizers": coders}, indent=2, default=str))
        return 0
    from rich.console import Console

    console, width = Console(), max((len(row["name"]) for row in (*rows, *coders)), default=0)
    for row in rows:
        reads = f"; reads {', '.join(row['reads'])}" if row["reads"] else ""
        trained = {"none": "no training", "optional": "may be trained", "required": "trained"}[row["training"]]
        adaptive = "; the number of tokens depends on the image" if row["adaptive"] else ""
        _print(console, row, f"{row['paper']}; {row['family']}, {trained}; {row['site']}{reads}{adaptive}", width)
    if rows and coders:
        console.print()
    for row in coders:
        drawn = "" if row["generator"] == "none" else f"; new codes: {row['generator']}"
        facts = f"{row['paper']}; {row['family']}, {COUNTS[row['counts']]}, {BASES[row['base']]}; {row['training']}"
        _print(console, row, facts + drawn, width)
    counted = f"{len(rows)} methods, {len(coders)} tokenizers"
    console.print(f"{counted}; --json gives every field of each, --family=vlm only those of one family")
    return 0


def _print(console: Any, row: dict[str, Any], facts: str, width: int) -> None:
    """Name and idea, and the facts below them."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Text.assemble((f"{row['name']:<{width}}  ", "bold"), row["idea"]))
    console.print(Padding(Text(facts, style="dim"), (0, 0, 0, width + 2)))


COMMAND = Command("list", "Show the catalogue of methods and tokenizers.", _flags, _run)
