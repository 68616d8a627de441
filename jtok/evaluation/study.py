"""A sweep with all that is kept of it: records on disk as they are measured, a table, plots, pictures, a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jtok import registry
from jtok.errors import UserError
from jtok.evaluation.pareto import table as make_table
from jtok.evaluation.pareto import write_csv, write_json
from jtok.evaluation.sweep import Cell, Record, held_out, sweep
from jtok.models.load import load_params
from jtok.plan import Plan
from jtok.training.classify import Classify
from jtok.training.record import git_commit, make_workdir, versions
from jtok.training.weights import load_reducer


class Study:
    """The sweep of `config.sweep` on one model.

    config.sweep: `methods` (names), `keeps` (ratios), `images` (held out), `batch`, `single_keeps` (ratios at which
    batch 1 is timed too), `runs` (method -> directory of the run that trained it; `{keep}` in it
    stands for the ratio, and a ratio without a directory stays untrained), `pictures` (how many images to draw),
    `picture_keeps` (at which ratios), `scale` and `notes` (sentences for the report).
    """

    def __init__(self, task: Classify, params: Mapping[str, Any], config: ConfigDict, workdir, command: str):
        self.task, self.params, self.config, self.command = task, params, config, command
        self.cells = make_cells(task, config.sweep)  # bad names and ratios are found before anything runs
        self.workdir: Path = make_workdir(workdir)
        self.records: list[Record] = []

    def run(self, say: Callable[[str], None] = print) -> list[Record]:
        """Measures every cell; records.json grows as they are done."""
        s = self.config.sweep
        images = held_out(self.task, self.config.data.eval_split, s.images)
        records: list[Record] = []

        def done(record: Record) -> None:
            records.append(record)
            write_json(self.workdir / "records.json", records)
            time = record[f"latency_ms_b{s.batch}"]["median"]
            mark = " (trained)" if record["trained"] else ""
            say(
                f"{len(records)}/{len(self.cells) + 1}  {record['method']}{mark} at {record['keep']:g}: "
                f"{record['accuracy']:.1%}, {record['gmacs'] * 1e3:.1f} MMACs, {time:.1f} ms a batch of {s.batch}"
            )

        single = [round(k, 6) for k in s.single_keeps]
        self.records = sweep(
            self.task, self.params, self.cells, images, batch=s.batch,
            single=lambda cell: round(cell.keep, 6) in single, progress=done,
        )  # fmt: skip
        write_csv(self.workdir / "records.csv", [_flat(r) for r in self.records])
        return self.records

    def table(self):
        """Accuracy of every method at every ratio, as a rich table."""
        keeps = sorted(self.config.sweep.keeps, reverse=True)
        rows: dict[str, dict[str, Any]] = {}
        for r in self.records:
            row = rows.setdefault(r["method"], {"method": r["method"]})
            row["trained"] = "yes" if r["trained"] else row.get("trained", "")
            for keep in [r["keep"]] if r["method"] != "none" else keeps:
                row[f"{keep:g}"] = f"{r['accuracy']:.1%}"
        return make_table(list(rows.values()), title="accuracy on held-out images by share of patches left at the end")

    def report(self) -> Path:
        """Draws plots and pictures and writes report.html beside the records."""
        from jtok.viz.files import write_whole
        from jtok.viz.gallery import compare_methods, picture_bytes
        from jtok.viz.pareto import draw_pareto, save_figure
        from jtok.viz.report import write_report

        figure = draw_pareto(self.records, batch=self.config.sweep.batch)
        save_figure(self.workdir / "pareto.png", figure)
        keeps = sorted(self.config.sweep.picture_keeps, reverse=True)
        drawn = [cell for cell in self.cells if cell.keep in keeps]
        sheets = compare_methods(self.task, self.params, drawn, self.config.sweep.pictures)
        for keep, (_, sheet) in zip(keeps, sheets, strict=True):
            write_whole(self.workdir / f"methods_keep_{keep:g}.png", picture_bytes(sheet))
        claims = {r["method"]: registry.find(r["method"]).claims for r in self.records if r["method"] != "none"}
        commit = git_commit()
        path = self.workdir / "report.html"
        write_report(
            path,
            title="Token reduction on " + self.config.data.name.replace("_", " "),
            config=self.config.to_dict(),
            records=self.records,
            pictures=[("accuracy against cost", figure), *sheets],
            claims=claims,
            notes=list(self.config.sweep.notes),
            scale=self.config.sweep.scale,
            command=self.command,
            versions=versions(),
            commit=commit["commit"] if commit else "",
        )
        return path


def make_cells(task: Classify, s: ConfigDict) -> list[Cell]:
    """Every method at every ratio. Raises UserError for unknown methods, bad ratios, missing or misfit runs."""
    for method in s.methods:
        registry.find(method)
    for name, run in s.runs.items():
        if run and name not in s.methods:
            raise UserError(f"sweep.runs names '{name}', which is not among sweep.methods.")
    cells = []
    for method in s.methods:
        for keep in s.keeps:
            plan = registry.make_plan(method, task.model.target(), keep)
            cells.append(Cell(method, keep, params=_trained(task, plan, s.runs.get(method, ""), keep)))
    return cells


def _trained(task: Classify, plan: Plan, run: str, keep: float) -> dict[str, Any] | None:
    """Tower and reducers of the run in directory `run`; None without one, or if it was made for another ratio only."""
    if not run:
        return None
    directory = Path(run.format(keep=f"{keep:g}"))
    if "{keep}" in run and not directory.is_dir():
        return None
    model = jax.eval_shape(lambda: task.init(jax.random.key(0)))["model"]
    return {
        "model": load_params(directory / "model.safetensors", task.model, model),
        "plan": load_reducer(directory / "model.reducer.safetensors", plan),
    }


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
