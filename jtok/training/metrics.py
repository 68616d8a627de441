"""Numbers of a run: `metrics.csv` and TensorBoard, both safe to resume."""

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from jtok.errors import UserError
from jtok.files import write_text

HEADER = "step,metric,value\n"


def truncate_csv(path: Path, step: int) -> None:
    """Drops the rows of `metrics.csv` beyond `step`, and a last line cut short by a kill. Makes the file if missing.

    Raises UserError if the file there is another kind.
    """
    text = path.read_text() if path.exists() else HEADER
    if not HEADER.startswith(text[: len(HEADER)]):
        raise UserError(f"{path} is not a metrics file of jtok (first line {HEADER.strip()!r}): move it away")
    whole = text[len(HEADER) : text.rfind("\n") + 1]
    rows = [line for line in io.StringIO(whole) if int(line.split(",", 1)[0]) <= step]
    write_text(path, HEADER + "".join(rows))


class MetricLog:
    """Appends `step,metric,value` rows (one a number, so that new metrics need no new column) and TensorBoard events.

    step: where the run starts; whatever an earlier process logged beyond it is forgotten.
    """

    def __init__(self, workdir: Path, step: int):
        path = workdir / "metrics.csv"
        truncate_csv(path, step)
        self._file = path.open("a", newline="")
        self._csv = csv.writer(self._file, lineterminator="\n")
        self._events = EventFileWriter(str(workdir / "tensorboard"))
        if step:
            start = SessionLog(status=SessionLog.START)  # TensorBoard forgets what it read from this step on
            self._events.add_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row and one event value a metric, flushed to the operating system."""
        self._csv.writerows((step, name, f"{value:.9g}") for name, value in metrics.items())
        self._file.flush()
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._events.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._events.flush()

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()
        self._events.close()
