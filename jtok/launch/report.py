"""What an experiment ends with: tables and a figure, shown and written beside the units."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jtok.errors import UserError
from jtok.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Report:
    """tables: title -> rows, each a mapping of column to value, in which what was not measured is None or left out."""

    tables: Mapping[str, Sequence[Row]]
    figure: Figure | None = None
    notes: Sequence[str] = ()

    def show(self) -> None:
        """Prints the tables and notes."""
        from rich.console import Console

        from jtok.evaluation.sweeps.pareto import table

        for title, rows in self.tables.items():
            Console().print(table(rows, title=title))
        for note in self.notes:
            print(note)

    def write(self, directory: Path) -> list[Path]:
        """Writes report.json, report.md and, with a figure, report.png; returns their paths."""
        from jtok.evaluation.sweeps.pareto import write_json

        write_json(directory / "report.json", {"tables": dict(self.tables), "notes": list(self.notes)})
        parts = [f"## {title}\n\n{markdown(rows)}" for title, rows in self.tables.items()]
        parts += [*self.notes, *(["![figure](report.png)"] if self.figure else [])]
        written = [directory / "report.json", write_text(directory / "report.md", "\n\n".join(parts) + "\n")]
        if self.figure:
            from jtok.viz.pareto import save_figure  # takes seconds to import

            written.append(save_figure(directory / "report.png", self.figure))
        return written


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table in Markdown; what was not measured is an empty cell."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([cell(row.get(c)) for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def make_report(make: Callable[[Mapping[str, Path]], Report], workdirs: Mapping[str, Path], root: Path) -> None:
    """Makes, shows and writes the report of the units that are done. Raises UserError where there are none."""
    if not workdirs:
        raise UserError(f"no unit under {root} is done, so there is nothing to report.")
    report = make(workdirs)
    report.show()
    print("wrote " + ", ".join(str(path) for path in report.write(root)))
