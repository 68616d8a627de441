"""Records of measurements: the front between cost and value, tables for the terminal, JSON and CSV files.

A record is a flat mapping of column to value, one for each point measured.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jtok.errors import UserError
from jtok.files import write_text

Record = Mapping[str, Any]


def front(points: Sequence[Record], cost: str = "gflops", value: str = "accuracy") -> list[Record]:
    """The non-dominated points, cheapest first.

    A point is dominated when another costs no more and is worth no less, and is strictly better in one of the two.
    Points equal in both stay together, in their given order.

    Raises:
        UserError: a point lacks `cost` or `value`, or holds something else than a number there.
    """
    kept: list[Record] = []
    best = -math.inf
    order = sorted(points, key=lambda point: (_number(point, cost), -_number(point, value)))
    for point in order:
        worth = _number(point, value)
        twin = bool(kept) and worth == best and _number(point, cost) == _number(kept[-1], cost)
        if worth > best or twin or not kept:
            kept.append(point)
            best = worth
    return kept


def table(records: Sequence[Record], columns: Sequence[str] | None = None, title: str | None = None) -> Table:
    """A `rich` table of records: numbers right-aligned in four significant digits, missing values blank.

    `columns` chooses and orders the columns; all of them in order of first appearance when None.
    """
    columns = _columns(records) if columns is None else list(columns)
    drawn = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)  # fits a narrow terminal
    for column in columns:
        numeric = any(_is_number(record.get(column)) for record in records)
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for record in records:
        drawn.add_row(*(_cell(record.get(column)) for column in columns))
    return drawn


def write_json(path: str | os.PathLike, records: Sequence[Record] | Record) -> None:
    """Write records as strict JSON, the file appearing whole or not at all; nan and infinity become null."""
    text = json.dumps(_plain(records), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def write_csv(path: str | os.PathLike, records: Sequence[Record]) -> None:
    """Write records as CSV with one header line, the file appearing whole or not at all; missing values are empty."""
    rows = io.StringIO()
    writer = csv.DictWriter(rows, fieldnames=_columns(records), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{key: _plain(value) for key, value in record.items()} for record in records])
    write_text(path, rows.getvalue())


def _number(point: Record, column: str) -> float:
    value = point.get(column)
    if not _is_number(value) or math.isnan(value):
        raise UserError(f"every point needs a number in {column!r}, and {dict(point)} has {value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (float, np.floating)):
        # Thousands and above in full: "1.234e+04" images a second is a poor way to print a throughput.
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)


def _columns(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(key for record in records for key in record))


def _plain(value: Any) -> Any:
    """The value in what JSON knows: NumPy and JAX scalars and arrays become numbers and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
