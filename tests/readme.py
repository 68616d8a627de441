"""The catalogue table of README.md, made from the registry. `python tests/readme.py --write` renews it."""

from __future__ import annotations

import sys
from pathlib import Path

from jtok.methods import catalogue

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- catalogue: begin -->", "<!-- catalogue: end -->"


def table() -> str:
    """One Markdown line a method."""
    lines = ["| method | what it does | paper | family | training | reads |", "|---|---|---|---|---|---|"]
    for m in catalogue.methods().values():
        file = m.plan.__module__.replace(".", "/")
        paper = f"{m.title} ({m.paper})" if m.paper != "baseline" else "baseline"
        reads = ", ".join(f"`{r}`" for r in catalogue.facts(m.name).reads) or "-"
        name = f"[`{m.name}`]({file}.py)"
        lines.append(f"| {name} | {m.idea} | {paper} | {m.family} | {m.training} | {reads} |")
    return "\n".join(lines)


def renewed(text: str) -> str:
    """README text with its table replaced."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    text = renewed(README.read_text())
    if "--write" in sys.argv:
        README.write_text(text)
    else:
        print(table())
