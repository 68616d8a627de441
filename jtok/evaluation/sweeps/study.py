"""A sweep with all that is kept of it: records on disk as they are measured, a table, plots, pictures, a report."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from ml_collections import ConfigDict
from PIL import Image
from rich.table import Table

from jtok.errors import UserError
from jtok.evaluation.sweeps.pareto import table as make_table
from jtok.evaluation.sweeps.pareto import write_csv, write_json
from jtok.evaluation.sweeps.sweep import Cell, Record, held_out, run_cell, sweep
from jtok.methods import catalogue
from jtok.models.towers.load import load_params
from jtok.plan import Plan
from jtok.target import Target
from jtok.training.config import flat_options
from jtok.training.record import git_commit, make_workdir, versions
from jtok.training.tasks.classify import Classify
from jtok.training.weights import load_reducer


class Subject(Protocol):
    """A model with held-out data on which a sweep measures methods."""

    @property
    def target(self) -> Target:
        """What plans are made for."""
        ...

    def measure(self, cell: Cell, single: bool) -> Record:
        """One cell's record; `single`: batch 1 is timed too."""
        ...

    def trained(self, plan: Plan, directory: Path) -> dict[str, Any]:
        """{"model", "plan"}: parameters that a run in `directory` trained for a plan. Raises UserError."""
        ...

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """What to print beside the table of accuracies."""
        ...

    def pictures(self, records: Sequence[Record], cells: Sequence[Cell]) -> list[tuple[str, Any]]:
        """(caption, picture or figure) for the report, beside the plot of accuracy against cost."""
        ...


class Study:
    """The sweep of `config.sweep` on one subject.

    config.sweep: `methods` (names), `keeps` (ratios), `batch`, `single_keeps` (ratios at which batch 1 is timed too),
    `runs` (method -> directory of the run that trained it; `{keep}` in it stands for the ratio, and a ratio without a
    directory stays untrained), `options` (method -> what its plan takes beside; may be left out), `title`, `scale` and
    `notes` (sentences for the report), `pictures_first` (pictures are drawn before anything is measured; may be left
    out); what the subject reads beside. Batch 1 is not timed at all where `single_keeps` is empty.
    """

    def __init__(self, subject: Subject, config: ConfigDict, workdir, command: str):
        self.subject, self.config, self.command = subject, config, command
        self.cells = make_cells(subject, config.sweep)  # bad names and ratios are found before anything runs
        self.workdir: Path = make_workdir(workdir)
        self.records: list[Record] = []
        self._drawn: list[tuple[str, Any]] | None = None

    def run(self, say: Callable[[str], None] = print) -> list[Record]:
        """Measures every cell; records.json grows as they are done."""
        s = self.config.sweep
        records: list[Record] = []
        ends: list[float] = []

        def done(record: Record) -> None:
            records.append(record)
            ends.append(time.monotonic())
            write_json(self.workdir / "records.json", records)
            latency = record[f"latency_ms_b{s.batch}"]["median"]
            mark = " (trained)" if record["trained"] else ""
            say(
                f"{progress(len(records), len(self.cells) + 1, ends[-1] - ends[0])}: "
                f"{record['method']}{mark}{_asked(record)} - "
                f"{record['accuracy']:.1%}, {record['gmacs'] * 1e3:.1f} MMACs, {latency:.1f} ms a batch of {s.batch}"
            )

        single = [round(k, 6) for k in s.single_keeps]
        self.records = sweep(
            self.subject.measure,
            self.cells,
            single=lambda cell: bool(single) and (cell.keep is None or round(cell.keep, 6) in single),
            progress=done,
        )
        write_csv(self.workdir / "records.csv", [_flat(r) for r in self.records])
        return self.records

    def draw(self) -> list[Path]:
        """Draws the subject's pictures into the working directory, once; the files."""
        from jtok.evaluation.figures.gallery import picture_bytes
        from jtok.viz.files import write_whole
        from jtok.viz.pareto import save_figure

        self._drawn = self.subject.pictures(self.records, self.cells)
        paths = []
        for caption, picture in self._drawn:
            paths.append(self.workdir / f"{_file_name(caption)}.png")
            if isinstance(picture, Image.Image):
                write_whole(paths[-1], picture_bytes(picture))
            else:
                save_figure(paths[-1], picture)
        return paths

    def untrained(self) -> list[Plan]:
        """A plan of every method that is measured with random parameters, as no run trained it."""
        target, cells = self.subject.target, [cell for cell in self.cells if cell.params is None]
        plans = {c.method: catalogue.make_plan(c.method, target, c.keep, **c.options) for c in cells}
        return [plan for plan in plans.values() if plan.untrained]

    def tables(self) -> list[Table]:
        """Accuracy of every method at every ratio, as a rich table, and what the subject adds."""
        keeps = sorted(self.config.sweep.keeps, reverse=True)
        rows: dict[str, dict[str, Any]] = {}
        for r in self.records:
            row = rows.setdefault(r["method"], {"method": r["method"]})
            row["trained"] = "yes" if r["trained"] else row.get("trained", "")
            for keep in [r["keep"]] if r["method"] != "none" else keeps:
                row["as it is" if keep is None else f"{keep:g}"] = f"{r['accuracy']:.1%}"
        title = "accuracy on held-out images by share of patches left at the end"
        return [make_table(list(rows.values()), title=title), *self.subject.tables(self.records)]

    def report(self) -> Path:
        """Draws plots and pictures and writes report.html beside the records."""
        from jtok.viz.pareto import draw_pareto, save_figure
        from jtok.viz.report import write_report

        figure = draw_pareto(self.records, batch=self.config.sweep.batch)
        save_figure(self.workdir / "pareto.png", figure)
        if self._drawn is None:
            self.draw()
        claims = {name: catalogue.find(name).claims for name in _single(self.records)}
        commit = git_commit()
        path = self.workdir / "report.html"
        write_report(
            path,
            title=self.config.sweep.title,
            config=self.config.to_dict(),
            records=self.records,
            pictures=[("accuracy against cost", figure), *(self._drawn or [])],
            claims=claims,
            notes=list(self.config.sweep.notes),
            scale=self.config.sweep.scale,
            command=self.command,
            versions=versions(),
            commit=commit["commit"] if commit else "",
        )
        return path


class SceneReader:
    """The subject of configs/vit/sweep.py: a classifier of images.

    config.sweep: also `images` (held out), `pictures` (how many images to draw) and `picture_keeps` (at which ratios).
    """

    def __init__(self, task: Classify, params: Mapping[str, Any], config: ConfigDict):
        self.task, self.params, self.config = task, params, config

    @property
    def target(self) -> Target:
        return self.task.model.target()

    @functools.cached_property
    def images(self) -> dict[str, Any]:
        """The held-out images."""
        return held_out(self.task, self.config.data.eval_split, self.config.sweep.images)

    def measure(self, cell: Cell, single: bool) -> Record:
        return run_cell(self.task, self.params, cell, self.images, batch=self.config.sweep.batch, single=single)

    def trained(self, plan: Plan, directory: Path) -> dict[str, Any]:
        model = jax.eval_shape(lambda: self.task.init(jax.random.key(0)))["model"]
        return {
            "model": load_params(directory / "model.safetensors", self.task.model, model),
            "plan": load_reducer(directory / "model.reducer.safetensors", plan),
        }

    def tables(self, records: Sequence[Record]) -> list[Table]:
        return []

    def pictures(self, records: Sequence[Record], cells: Sequence[Cell]) -> list[tuple[str, Any]]:
        from jtok.evaluation.figures.gallery import compare_methods

        drawn = [cell for cell in cells if cell.keep is None or cell.keep in self.config.sweep.picture_keeps]
        split = self.config.data.eval_split
        return compare_methods(self.task, self.params, drawn, self.config.sweep.pictures, split)


def make_cells(subject: Subject, s: ConfigDict) -> list[Cell]:
    """Every method at every ratio. Raises UserError for unknown methods, bad ratios, missing or misfit runs."""
    for method in s.methods:
        for part in method.split("+"):
            catalogue.find(part)
    for name, run in s.runs.items():
        if run and name not in s.methods:
            raise UserError(f"sweep.runs names '{name}', which is not among sweep.methods.")
    cells = []
    for method in s.methods:
        options = flat_options(method, dict(s.get("options", {}).get(method, {})))
        said = any(name.rpartition(".")[2] in catalogue.AMOUNTS for name in options)
        for keep in s.keeps if catalogue.takes_share(method) and not said else (None,):
            plan = catalogue.make_plan(method, subject.target, keep, **options)
            cells.append(Cell(method, keep, options, _trained(subject, plan, s.runs.get(method, ""), keep)))
    return cells


def _trained(subject: Subject, plan: Plan, run: str, keep: float | None) -> dict[str, Any] | None:
    """What the run in directory `run` trained; None without one, or if it was made for another ratio only."""
    if not run:
        return None
    directory = Path(run if keep is None else run.format(keep=f"{keep:g}"))
    if "{keep}" in run and not directory.is_dir():
        return None
    return subject.trained(plan, directory)


def progress(done: int, total: int, seconds: float) -> str:
    """How far a sweep is, and the minutes left if further points take as long as those so far did on average.

    done: points measured, at least 1; total: points in all; seconds: from the end of the first point to that of the
    last. The first is of the unreduced model, which compiles fastest, so nothing is said of the time left after it.
    """
    said = f"{done} of {total} points"
    if done in (1, total):
        return said
    minutes = seconds / (done - 1) * (total - done) / 60
    return f"{said}, about {minutes:.0f} min left" if minutes >= 1 else f"{said}, less than a minute left"


def _asked(record: Record) -> str:
    asked = f" at {record['asked']}" if record["asked"] else ""
    return f"{asked} ({record['tokens']:.1f} tokens, at most {record['cap']})" if record["adaptive"] else asked


def _single(records: Sequence[Record]) -> list[str]:
    """Methods of the catalogue among records, without those that are joined."""
    return [name for name in dict.fromkeys(r["method"] for r in records) if name != "none" and "+" not in name]


def _file_name(caption: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", caption.lower()).strip("_")


def read_records(workdir: str | Path) -> list[Record]:
    """Records of a finished (or running) sweep. Raises UserError where there are none."""
    path = Path(workdir) / "records.json"
    if not path.is_file():
        raise UserError(f"'{workdir}' holds no records.json: it is not the directory of a sweep.")
    return json.loads(path.read_text())


def _flat(record: Record) -> Record:
    flat: Record = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{name}_{part}": x for part, x in value.items()}
        else:
            flat[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return flat
