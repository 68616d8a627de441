"""Units as processes of this machine: at most a given number at once, each on its share of the cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from jtok.launch.board import DONE, EARLIER, FAILED, RUNNING, STOPPED, WAITING, Board, Job
from jtok.launch.unit import PREEMPTED
from jtok.launch.units import Unit

POLL = 0.1  # seconds
GRACE = 60.0  # seconds that a unit has to save when everything is stopped
RESTARTS = 100  # of one unit: beyond that something else is wrong
LINES = 15  # of a failed unit's log


def run_local(title: str, units: Sequence[Unit], max_parallel: int) -> list[Job]:
    """Runs all units that are not done, and returns how each fared.

    A unit that fails is reported with the end of its log while others continue; one that exits with 75 (preempted, and
    saved) is started again. However this function is left, by Ctrl-C too, no unit is left running: each is sent SIGTERM
    and has a minute to save; a second Ctrl-C kills.
    """
    jobs = [Job(unit, EARLIER if unit.done() else WAITING) for unit in units]
    with Board(title, jobs) as board:
        _Pool(jobs, max_parallel, board).run()
    return jobs


class _Pool:
    """The processes that run, by the slot that each occupies."""

    def __init__(self, jobs: Sequence[Job], max_parallel: int, board: Board):
        self.jobs, self.board = jobs, board
        self.slots = _slots(max_parallel)
        self.running: dict[int, tuple[Job, subprocess.Popen]] = {}

    def run(self) -> None:
        for job in self.jobs:
            if job.state == EARLIER:
                self.board.changed(job)
        try:
            while self._start() or self.running:
                time.sleep(POLL)
                self._reap()
                self.board.update()
        finally:
            self._stop()

    def _start(self) -> bool:
        """Fills free slots; whether anything waits still."""
        for slot in range(len(self.slots)):
            job = next((job for job in self.jobs if job.state == WAITING), None)
            if job is None:
                return False
            if slot not in self.running:
                self.running[slot] = (job, self._spawn(job, *self.slots[slot]))
                self.board.changed(job)
        return True

    def _spawn(self, job: Job, cores: set[int], environment: dict[str, str]) -> subprocess.Popen:
        """Starts a process in its own session, so that Ctrl-C reaches us and not it."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab") as log:
            job.start_of_log = log.tell()
            process = subprocess.Popen(
                [sys.executable, *job.unit.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                start_new_session=True,
            )
        if cores:
            with suppress(OSError):  # it has ended already
                os.sched_setaffinity(process.pid, cores)
        job.state, job.began = RUNNING, time.monotonic()
        return process

    def _reap(self) -> None:
        for slot, (job, process) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what a unit that was killed left behind
            del self.running[slot]
            job.code, job.seconds = code, job.seconds + time.monotonic() - job.began
            self._judge(job)

    def _judge(self, job: Job) -> None:
        if job.code == PREEMPTED and job.restarts < RESTARTS:
            job.restarts += 1
            job.state = WAITING
            self.board.changed(job, f"was preempted and resumes (restart {job.restarts})")
        elif job.code == 0 and job.unit.done():
            job.state = DONE
            self.board.changed(job)
        else:
            job.state = FAILED
            self.board.changed(job, failure(job))

    def _stop(self) -> None:
        """Asks all that run to save and leave, and kills what does not."""
        if not self.running:
            return
        self.board.say(f"stopping {len(self.running)} units; Ctrl-C again kills them")
        end = time.monotonic() + GRACE
        try:
            self._signal(signal.SIGTERM)
            while any(process.poll() is None for _, process in self.running.values()) and time.monotonic() < end:
                time.sleep(POLL)
        finally:
            self._signal(signal.SIGKILL)
            for job, process in self.running.values():
                job.code, job.state = process.wait(), STOPPED
                job.seconds += time.monotonic() - job.began
            self.running.clear()

    def _signal(self, number: int) -> None:
        """To the processes and what they started; what has ended is passed over."""
        for _, process in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def failure(job: Job) -> str:
    """What went wrong with a unit, and the end of its log."""
    code = job.code or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
    lines = "\n".join(f"    {line}" for line in job.last_lines(LINES))
    return f"{how}; the end of {job.log}:\n{lines}" if lines else f"{how}, and {job.log} says nothing"


def _slots(count: int) -> list[tuple[set[int], dict[str, str]]]:
    """(cores, environment) of each slot: shares of equal size, so that all units compute alike.

    GPUs are shared out where CUDA_VISIBLE_DEVICES names at least one a slot.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = max(1, len(cores) // count)
    devices = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    each = len(devices) // count
    slots = []
    for slot in range(count):
        mine = {cores[(slot * share + i) % len(cores)] for i in range(share)} if cores else set()
        gpus = {"CUDA_VISIBLE_DEVICES": ",".join(devices[slot * each : (slot + 1) * each])} if each else {}
        slots.append((mine, gpus))
    return slots
