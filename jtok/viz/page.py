"""The look of a report: one style sheet for light and dark, and a script of a few lines that sorts tables."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from jtok.viz.pareto import figure_png

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --faint: #63636b; --paper: #ffffff; --band: #f4f4f6;
  --rule: #d9d9de; --accent: #0b6e4f; --note: #fff5d6; --note-ink: #5b4300; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --faint: #a3a3ad; --paper: #17171a; --band: #222226;
  --rule: #3a3a41; --accent: #5fd0a5; --note: #3a3013; --note-ink: #f3dfa2; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1440px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0 0 .4rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
.scale { background: var(--note); color: var(--note-ink); padding: .5rem .8rem; border-radius: 6px; margin: .8rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
caption { text-align: left; color: var(--faint); padding: .2rem 0; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { background: var(--band); vertical-align: bottom; white-space: normal; } td.text, th.text { text-align: left; }
td.long { white-space: normal; min-width: 14rem; } table.sortable th { cursor: pointer; }
td b { color: var(--accent); } tr:hover td { background: var(--band); }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; background: #fff; padding: 6px; border-radius: 6px;
  border: 1px solid var(--rule); box-sizing: border-box; } figcaption { color: var(--faint); font-size: 13.5px; }
pre { background: var(--band); padding: .6rem .8rem; border-radius: 6px; overflow-x: auto; font-size: 12.5px; }
"""

SCRIPT = """
for (const head of document.querySelectorAll("table.sortable th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const up = head.dataset.up = head.dataset.up === "1" ? "" : "1";
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => key(a) === "" ? 1 : key(b) === "" ? -1 : (up ? 1 : -1) *
    (isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b));
  body.append(...[...body.rows].sort(compare));
};
"""


class Cell:
    """One cell of a table: what it shows, what it sorts by, and how it looks."""

    def __init__(self, text: object = "", value: float | None = None, *, best: bool = False, kind: str = ""):
        self.text, self.value, self.best, self.kind = "" if text is None else str(text), value, best, kind

    def __str__(self) -> str:
        kind = f' class="{self.kind}"' if self.kind else ""
        value = f' data-value="{self.value:.9g}"' if self.value is not None else ""
        text = html.escape(self.text)
        return f"<td{kind}{value}>{f'<b>{text}</b>' if self.best else text}</td>"


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str = "", texts: int = 1) -> str:
    """A sortable table; the first `texts` columns are text, aligned left."""
    top = "".join(
        f'<th class="text">{html.escape(h)}</th>' if i < texts else f"<th>{html.escape(h)}</th>"
        for i, h in enumerate(heads)
    )
    body = "\n".join(f"<tr>{''.join(map(str, row))}</tr>" for row in rows)
    told = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    inner = f"{told}<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="wide"><table class="sortable">{inner}</table></div>'


def page(title: str, body: str) -> str:
    """A whole HTML document that needs no other file."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def section(head: str, body: str) -> str:
    """A part of the page under its head."""
    return f"<h2>{html.escape(head)}</h2>\n{body}"


def picture_html(caption: str, picture: Image.Image | Figure) -> str:
    """A figure embedded in the page, with its caption."""
    if isinstance(picture, Figure):
        data = figure_png(picture)
    else:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        data = buffer.getvalue()
    told = html.escape(caption)
    source = base64.b64encode(data).decode()
    return f'<figure><img alt="{told}" src="data:image/png;base64,{source}"><figcaption>{told}</figcaption></figure>'


def provenance(config: Mapping[str, Any], command: str, versions: Mapping[str, str], commit: str) -> str:
    """The command, the commit, the versions and the whole config: how to make the page again."""
    lines = [f"$ {command}"] if command else []
    lines += [f"commit {commit}"] if commit else []
    lines += [f"{name} {version}" for name, version in versions.items()]
    plain = json.dumps(config, indent=2, default=str, sort_keys=True)
    return "".join(f"<pre>{html.escape(text)}</pre>" for text in ("\n".join(lines), plain) if text)
