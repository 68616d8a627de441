"""One HTML file that holds a sweep: tables, plots, figures, the papers' claims and measurements, and provenance."""

from __future__ import annotations

import html
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from jtok.registry import Claim
from jtok.viz.files import write_whole
from jtok.viz.page import Cell, page, picture_html, provenance, section, table
from jtok.viz.pareto import group_lines, line_name

Record = Mapping[str, Any]

COST_HEADS = (
    "method",
    "tokens after each block",
    "keep",
    "accuracy %",
    "correct / total",
    "GMACs",
    "% of unreduced",
    "tokens, average",
    "tokens, end",
    "latency ms, batch 1",
    "latency ms, batch 8",
    "images/s, batch 8",
)


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    config: Mapping[str, Any],
    records: Sequence[Record],
    pictures: Sequence[tuple[str, Image.Image | Figure]] = (),
    claims: Mapping[str, Sequence[Claim]] | None = None,
    notes: Sequence[str] = (),
    scale: str = "",
    command: str = "",
    versions: Mapping[str, str] | None = None,
    commit: str = "",
) -> Path:
    """Writes one self-contained HTML file, whole or not at all; returns its path.

    records: one mapping for each method and keep ratio, with `method`, `family`, `training`, `trained`, `keep`,
    `accuracy` (0 to 1), `correct`, `total`, `gmacs`, `gmacs_unreduced`, `tokens_end`, `tokens_average`,
    `tokens_per_block`, `latency_ms_b1` and `latency_ms_b8` ({median, p10, p90}), `throughput_b8` (images/s), `title`,
    `paper`, `idea`; what is missing or None becomes an empty cell. The unreduced model has method "none".
    pictures: (caption, picture), in order. claims: what papers report, by method. scale: a sentence that says at
    which scale the numbers were taken, shown on top. command, versions, commit: how to make it again.
    Raises UserError when nothing can be written at `path`.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if scale:
        parts.append(f'<div class="scale">{html.escape(scale)}</div>')
    if notes:
        parts.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in notes) + "</ul>")
    parts += [section("Accuracy", accuracy_table(records)), *(picture_html(*p) for p in pictures)]
    parts.append(section("Accuracy and cost of every point", cost_table(records)))
    if claims:
        parts.append(section("Claimed by the papers, measured here", claims_table(claims, records)))
    parts.append(section("Methods", methods_table(records)))
    parts.append(section("How this was made", provenance(config, command, versions or {}, commit)))
    return write_whole(path, page(title, "\n".join(parts)).encode())


def accuracy_table(records: Sequence[Record]) -> str:
    """Methods down, keep ratios across; the best reducer of every column is bold, the unreduced model comes first."""
    lines = group_lines(records)
    keeps = sorted({r["keep"] for r in records if r["method"] != "none"}, key=lambda keep: -(keep or 0))
    accuracies = {(name, r.get("keep")): r.get("accuracy") for name, rs in lines.items() for r in rs}
    reducers = [name for name in lines if name != "unreduced"]
    best = {
        k: max((accuracies[n, k] for n in reducers if accuracies.get((n, k)) is not None), default=None) for k in keeps
    }
    rows = []
    if "unreduced" in lines:
        whole = lines["unreduced"][0].get("accuracy")
        rows.append([Cell("unreduced", kind="text"), *[_percent(whole)] * len(keeps)])
    for name in reducers:
        cells = [accuracies.get((name, k)) for k in keeps]
        rows.append([Cell(name, kind="text")] + [_percent(a, a == best[k]) for a, k in zip(cells, keeps, strict=True)])
    heads = ["method", *(_ratio(k) if k is None else f"keep {k:g}" for k in keeps)]
    return table(
        heads, rows, caption="Accuracy in %; the best reducer at each keep ratio is bold. Click a head to sort."
    )


def cost_table(records: Sequence[Record]) -> str:
    """One row a record, with everything that was measured."""
    rows = []
    for name, members in group_lines(records).items():
        for r in members:
            share = r["gmacs"] / r["gmacs_unreduced"] if r.get("gmacs") and r.get("gmacs_unreduced") else None
            score = f"{r['correct']} / {r['total']}" if None not in (r.get("correct"), r.get("total")) else ""
            row = [Cell(name, kind="text"), Cell(_blocks(r), kind="text")]
            row += [_number(r.get("keep"), "g"), _percent(r.get("accuracy")), Cell(score)]
            row += [_number(r.get("gmacs"), ".3g"), _number(share and 100 * share, ".0f")]
            row += [_number(r.get("tokens_average"), ".1f"), _number(r.get("tokens_end"), "g")]
            row += [_latency(r.get("latency_ms_b1")), _latency(r.get("latency_ms_b8"))]
            rows.append([*row, _number(r.get("throughput_b8"), ".0f")])
    return table(COST_HEADS, rows, caption="Latency: milliseconds a batch, median [p10-p90].", texts=2)


def claims_table(claims: Mapping[str, Sequence[Claim]], records: Sequence[Record]) -> str:
    """What the papers report on their models, next to what was measured on this one."""
    measured: dict[str, list[str]] = {}
    for name, members in group_lines(records).items():
        suffix = name.removeprefix(str(members[0]["method"])).strip()
        points = ", ".join(
            f"{_ratio(r['keep'])}: {100 * r['accuracy']:.1f}" for r in members if r.get("accuracy") is not None
        )
        measured.setdefault(str(members[0]["method"]), []).append(f"{suffix} {points}".strip())
    rows = []
    for method in sorted(claims.keys() & measured.keys()):
        here = Cell("; ".join(measured[method]), kind="text long")
        for claim in claims[method]:
            row = [Cell(text, kind="text") for text in (method, claim.model, claim.setting, claim.metric)]
            rows.append([*row, _number(claim.value, "g"), _number(claim.gmacs, "g"), here])
    heads = (
        "method",
        "the paper's model",
        "its setting",
        "its metric",
        "claimed",
        "GMACs claimed",
        "here, keep: accuracy %",
    )
    told = "Different model, different data: compare the trends, not the numbers."
    return table(heads, rows, caption=told, texts=4)


def methods_table(records: Sequence[Record]) -> str:
    """Each method once: its paper and its idea."""
    first = {line_name({**r, "trained": False, "training": "none"}): r for r in reversed(records)}
    columns = ("family", "training", "idea", "title", "paper")
    rows = [
        [Cell(name, kind="text"), *(Cell(first[name].get(c), kind="text") for c in columns)] for name in sorted(first)
    ]
    return table(("method", *columns), rows, texts=6)


def run_lengths(counts: Sequence[int] | None) -> str:
    """[64, 64, 32] -> "64 x2, 32": the tokens after each block, runs of equal counts written once."""
    groups = [(value, len(list(group))) for value, group in itertools.groupby(counts or [])]
    return ", ".join(f"{value:g} \N{MULTIPLICATION SIGN}{n}" if n > 1 else f"{value:g}" for value, n in groups)


def _number(value: float | None, form: str) -> Cell:
    return Cell() if value is None else Cell(format(value, form), value)


def _blocks(record: Record) -> str:
    """Tokens after each block: caps, where the number depends on the image."""
    lengths = run_lengths(record.get("tokens_per_block"))
    return f"at most {lengths}" if lengths and record.get("adaptive") else lengths


def _ratio(keep: float | None) -> str:
    return "as it is" if keep is None else f"{keep:g}"


def _percent(value: float | None, best: bool = False) -> Cell:
    return Cell() if value is None else Cell(f"{100 * value:.1f}", 100 * value, best=best)


def _latency(value: Mapping[str, float] | None) -> Cell:
    if not value or value.get("median") is None:
        return Cell()
    known = value.get("p10") is not None and value.get("p90") is not None
    spread = f" [{value['p10']:.2f}\N{EN DASH}{value['p90']:.2f}]" if known else ""
    return Cell(f"{value['median']:.2f}{spread}", value["median"])
