"""Stopping a run cleanly: SIGTERM and Ctrl-C finish the step, save, and exit."""

import signal
import threading
from pathlib import Path

import jax


class Stopped(Exception):
    """The run was asked to stop, has saved, and can be resumed by the same command.

    `exit_code` (75, `EX_TEMPFAIL` of sysexits.h: try again later) is what the command line exits with.
    """

    exit_code = 75

    def __init__(self, reason: str, step: int, checkpoint: Path):
        super().__init__(
            f"stopped by {reason} after step {step}, saved in {checkpoint}: the same command resumes the run"
        )
        self.step = step
        self.checkpoint = checkpoint


class StopRequest:
    """While entered, the first SIGTERM or SIGINT is noted in `reason`; a second Ctrl-C interrupts at once.

    Python delivers signals to the main thread only: in another thread nothing is installed. Nor is it in a run of
    several processes, where JAX's distributed client catches SIGTERM and all of them agree on the step to stop at.
    """

    def __init__(self):
        self.reason: str | None = None
        self._before: dict[int, object] = {}

    def _note(self, number: int, frame) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = self.reason or signal.Signals(number).name

    def __enter__(self) -> "StopRequest":
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
