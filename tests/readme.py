"""The catalogue tables of README.md, made from the registries. `python tests/readme.py --write` renews them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from jtok.methods import catalogue
from jtok.tokenizers.registry import tokenizers

README = Path(__file__).resolve().parent.parent / "README.md"


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


def tokenizer_table() -> str:
    """One Markdown line an image tokenizer."""
    bases = {"none": "-", "vae": "VAE", "base": "2-D tokenizer"}
    lines = [
        "| tokenizer | what it does | paper | tokens | base | training | generator |",
        "|---|---|---|---|---|---|---|",
    ]
    for t in tokenizers().values():
        facts = (f"{t.title} ({t.paper})", t.counts, bases[t.base], t.training, t.generator.replace("none", "-"))
        lines.append(f"| [`{t.name}`]({t.file}) | {t.idea} | {' | '.join(facts)} |")
    return "\n".join(lines)


#: What stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.
TABLES: dict[str, Callable[[], str]] = {"catalogue": table, "tokenizers": tokenizer_table}


def renewed(text: str) -> str:
    """README text with its tables replaced."""
    for name, made in TABLES.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{made()}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    text = renewed(README.read_text())
    if "--write" in sys.argv:
        README.write_text(text)
    else:
        print("\n\n".join(made() for made in TABLES.values()))
