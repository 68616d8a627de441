"""What a sweep looks like while it runs: a live table in a terminal, a line for every change elsewhere."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from jtok.launch.units import Unit

WAITING, RUNNING, DONE, EARLIER, FAILED, STOPPED = "waiting", "running", "done", "done earlier", "failed", "stopped"
STYLES = {RUNNING: "bold", DONE: "green", EARLIER: "green", FAILED: "red", STOPPED: "yellow"}
SHOWN = 30  # rows of the live table: more units than lines would scroll it away


@dataclasses.dataclass
class Job:
    """A unit and how it fares."""

    unit: Unit
    state: str = WAITING
    restarts: int = 0
    began: float = 0.0
    seconds: float = 0.0
    code: int | None = None
    start_of_log: int = 0  # where the log of the latest attempt begins, in bytes

    @property
    def log(self) -> Path:
        return Path(self.unit.workdir) / "log.txt"

    def last_lines(self, count: int) -> list[str]:
        """The last lines that the latest attempt wrote; of one that was written over, its last state."""
        try:
            with open(self.log, "rb") as file:
                end = file.seek(0, 2)
                file.seek(max(self.start_of_log, end - 20_000))
                text = file.read().decode(errors="replace")
        except OSError:
            return []
        lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
        return [line for line in lines if line][-count:]


class Board:
    """While entered, shows `jobs`. `update` is called often, `changed` when a job's state did."""

    def __init__(self, title: str, jobs: Sequence[Job]):
        self.title, self.jobs, self.console = title, jobs, Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.drawn = 0.0

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.live:
            self.update(now=True)
            self.live.stop()

    def update(self, *, now: bool = False) -> None:
        """Redraws the table, at most twice a second."""
        if self.live and (now or time.monotonic() - self.drawn > 0.5):
            self.live.update(self._table(), refresh=True)
            self.drawn = time.monotonic()

    def changed(self, job: Job, note: str = "") -> None:
        """Says what became of a job, where there is no table that shows it; notes are said everywhere."""
        if not self.live or note:
            self.console.print(f"{self._count()}  {job.unit.name}: {note or job.state}", highlight=False, markup=False)
        self.update(now=True)

    def say(self, text: str) -> None:
        """Prints above the table."""
        self.console.print(text, highlight=False, markup=False)

    def _count(self) -> str:
        return f"{sum(job.state in (DONE, EARLIER) for job in self.jobs)}/{len(self.jobs)} done"

    def _table(self) -> Table:
        table = Table(title=f"{self.title}: {self._count()}")
        for column in ("unit", "state", "restarts", "time", "last line"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        order = {RUNNING: 0, FAILED: 1, STOPPED: 2, WAITING: 3}
        shown = sorted(self.jobs, key=lambda job: order.get(job.state, 4))[:SHOWN]
        for job in [job for job in self.jobs if job in shown]:
            seconds = time.monotonic() - job.began if job.state == RUNNING else job.seconds
            last = job.last_lines(1) if job.state in (RUNNING, FAILED) else []
            clock = f"{int(seconds) // 60}:{int(seconds) % 60:02d}" if seconds else ""
            restarts = str(job.restarts or "")
            style = STYLES.get(job.state)
            table.add_row(job.unit.name, job.state, restarts, clock, (last or [""])[0], style=style)
        if len(self.jobs) > len(shown):
            table.caption = f"and {len(self.jobs) - len(shown)} more"
        return table
