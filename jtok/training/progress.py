"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class Speed:
    """Images per second of training alone.

    Time spent evaluating or saving is left out by calling `restart`, and so is the first step, which compiles.
    """

    def __init__(self, batch: int):
        self._batch = batch
        self._seconds = 0.0
        self._steps = 0
        self._mark: float | None = None

    def restart(self) -> None:
        self._mark = time.perf_counter()

    def step(self) -> None:
        now = time.perf_counter()
        if self._mark is not None:
            self._seconds += now - self._mark
            self._steps += 1
        self._mark = now

    def forget(self) -> None:
        """Starts a new average."""
        self._seconds, self._steps = 0.0, 0

    @property
    def images_per_second(self) -> float | None:
        return self._batch * self._steps / self._seconds if self._seconds else None


class ProgressReport:
    """Shows step, loss, images/s and time left. On a terminal a bar that moves every step, else a line per log."""

    def __init__(self, steps: int, start: int, batch: int, *, shown: bool):
        self._steps, self._batch, self._shown = steps, batch, shown
        console = Console(stderr=True)
        self._bar = None
        if shown and console.is_terminal:
            columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
            self._bar = Progress(*columns, console=console)
            self._row = self._bar.add_task("training", total=steps, completed=start, note="compiling")

    def __enter__(self) -> "ProgressReport":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int) -> None:
        if self._bar:
            self._bar.update(self._row, completed=step)

    def log(self, step: int, loss: float, rate: float | None) -> None:
        """rate: images per second, None if not yet known."""
        note = f"loss {loss:.4f}"
        if rate:
            remaining = timedelta(seconds=round((self._steps - step) * self._batch / rate))
            note += f"  {rate:.0f} images/s  {remaining} left"
        if self._bar:
            self._bar.update(self._row, completed=step, note=note)
        else:
            self.say(f"step {step}/{self._steps}  {note}")

    def say(self, text: str) -> None:
        """Prints a separate line."""
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._shown:
            print(text, file=sys.stderr, flush=True)
