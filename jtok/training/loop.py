"""The training loop: one, for every task."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh
from jaxtyping import Array

from jtok import compile_cache
from jtok.errors import UserError
from jtok.sharding import check_batch, place, shardings, whole
from jtok.training import optimizer as opt
from jtok.training import record
from jtok.training.checkpoint import Checkpoints, DataPosition
from jtok.training.config import validate
from jtok.training.evaluation import Evaluator
from jtok.training.metrics import MetricLog
from jtok.training.progress import ProgressReport, Speed
from jtok.training.sharding import mesh_of, put_batch
from jtok.training.state import TrainState, create, trainable_names
from jtok.training.step import make_step
from jtok.training.stop import Stopped, StopRequest
from jtok.training.task import DataIterator, Task


def train(config: ml_collections.ConfigDict, workdir: str | Path, task: Task, *, progress: bool = True) -> TrainState:
    """Trains `task` for `config.train.steps` updates in `workdir` and returns the final state.

    A run that was killed, or stopped by a signal, resumes from its newest checkpoint when called again, and on CPU
    with the same number of cores ends with the same bits as an uninterrupted one. `workdir` receives `config.json`,
    `versions.json`, `metrics.csv`, `tensorboard/` and `checkpoints/<step>/`. Progress goes to stderr.

    Several processes (see `jtok.distributed`) all call this with the same arguments and a `workdir` that all of them
    see; they make the same updates as one process would, up to the order of sums, and may be more or fewer when they
    go on.

    Raises UserError for a config that cannot run, a mesh or batch that cannot be shared by the devices, a directory
    that cannot be written, a checkpoint that cannot be read or is of another model, a loss or gradient that is not
    finite, and data that end early; Stopped after SIGTERM or Ctrl-C, once saved.
    """
    validate(config)
    compile_cache.enable()
    mesh = mesh_of(config)
    check_batch(config.train.batch, config.train.accumulate, mesh)
    workdir = record.make_workdir(workdir)
    with ExitStack() as stack:
        run = _prepare(config, mesh, workdir, task, stack, progress)
        with jax.set_mesh(run.mesh), jax.transfer_guard("disallow"):  # ops ask which axes the batch is split over
            return run.run()


def _prepare(config, mesh: Mesh, workdir: Path, task: Task, stack: ExitStack, progress: bool) -> "_Run":
    """Builds or restores all that the loop needs; what must be closed is entered on `stack`."""
    train, plain = config.train, record.resolved(config)
    state, names, optimizer = _fresh_state(config, mesh, task)
    checkpoints = stack.enter_context(Checkpoints(workdir / "checkpoints", train.keep))
    with jax.set_mesh(mesh):  # which says what rows this process reads
        data = iter(task.train_data())
    start = checkpoints.latest() or 0
    if start:
        state, position = checkpoints.restore(start, state)
        data.set_state(position.state)
    leads = jax.process_index() == 0
    changes = record.write_records(workdir, plain) if leads else []
    log = stack.enter_context(MetricLog(workdir, start)) if leads else None
    report = stack.enter_context(ProgressReport(train.steps, start, train.batch, shown=progress and leads))
    stop = stack.enter_context(StopRequest())
    if start:
        report.say(f"{'resuming from' if start < train.steps else 'finished already at'} step {start} in {workdir}")
    for change in changes:
        report.say(f"the config differs from the one recorded in {workdir}: {change}")
    results = shardings(state, mesh), whole(mesh)
    step = jax.jit(make_step(task, train, names, optimizer), donate_argnums=0, out_shardings=results)
    return _Run(train, plain, mesh, step, state, start, data, Evaluator(task, mesh), checkpoints, log, report, stop)


def _fresh_state(config, mesh: Mesh, task: Task) -> tuple[TrainState, tuple[str, ...], Any]:
    """(the state before the first update, names of what learns, optimizer). Parameters are made on the host, so that
    no device ever holds more of the state than its own part."""
    init_key, key = jax.random.split(jax.random.key(config.seed))
    with jax.default_device(_host()):
        params = task.init(init_key)
    names = trainable_names(params, task.trainable(params))
    if not names:
        raise UserError("every parameter is frozen: leave at least one to train")
    optimizer = opt.build(config.train)
    params = place(params, mesh)

    def new(params, key):
        return create(params, names, optimizer, ema=config.train.ema > 0, key=key)

    placed = shardings(jax.eval_shape(new, params, key), mesh)
    return jax.jit(new, out_shardings=placed)(params, key), names, optimizer


def _host() -> jax.Device | None:
    """The CPU next to the accelerators; None, the default device, where JAX is configured without it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@dataclasses.dataclass
class _Run:
    """One run in progress: what stays the same between steps, and `state` and `done` that do not."""

    train: ml_collections.ConfigDict
    config: dict
    mesh: Mesh
    step: Callable
    state: TrainState
    done: int
    data: DataIterator
    evaluate: Evaluator
    checkpoints: Checkpoints
    log: MetricLog | None
    report: ProgressReport
    stop: StopRequest

    def run(self) -> TrainState:
        """The hot loop. The next batch is read while the device works; finiteness is looked at one step late, so that
        the device never waits for the host, and again before anything is logged or saved."""
        speed = Speed(self.train.batch)
        earlier = None
        upcoming = self._read() if self.done < self.train.steps else None
        while self.done < self.train.steps:
            batch, position = upcoming
            self.state, metrics = self.step(self.state, batch)
            self.done += 1
            upcoming = self._read() if self.done < self.train.steps else None
            if earlier is not None:
                self._check_finite(self.done - 1, earlier)
            earlier = metrics
            self.report.step(self.done)
            speed.step()
            self._after_step(metrics, position, speed)
        self.checkpoints.wait()
        return self.state

    def _read(self) -> tuple[dict[str, Array], DataPosition]:
        """The next batch, on the devices, and where the data stand after it."""
        try:
            batch = next(self.data)
        except StopIteration:
            raise UserError(
                f"the training data ended after {self.done} of {self.train.steps} steps: they must repeat"
            ) from None
        return put_batch(batch, self.mesh), DataPosition(self.data.get_state())

    def _after_step(self, metrics: dict[str, Array], position: DataPosition, speed: Speed) -> None:
        """Logs, evaluates, saves and stops, where it is time to. Logs come first, so that no checkpoint is ahead of
        `metrics.csv`."""
        log, evaluate, save = (self._due(self.train[f"{name}_every"]) for name in ("log", "eval", "checkpoint"))
        stop = self._stop_reason()
        if not (log or evaluate or save or stop):
            return
        self._check_finite(self.done, metrics)
        if log:
            self._log_training(metrics, speed)
        if evaluate:
            self._evaluate()
        if save or stop:
            self.checkpoints.save(self.done, self.state, position, self.config)
        if stop and self.done < self.train.steps:
            self.checkpoints.wait()
            raise Stopped(stop, self.done, self.checkpoints.path(self.done))
        speed.restart()

    def _due(self, every: int) -> bool:
        return self.done == self.train.steps or (every > 0 and self.done % every == 0)

    def _stop_reason(self) -> str | None:
        """Single process: the signal it got. Several: the step at which all of them agreed to stop."""
        if jax.process_count() == 1:
            return self.stop.reason
        return "preemption" if self.checkpoints.preempted(self.done) else None

    def _check_finite(self, step: int, metrics: dict[str, Array]) -> None:
        if jax.device_get(metrics["finite"]):
            return
        self.checkpoints.wait()
        loss, norm = (float(jax.device_get(metrics[name])) for name in ("loss", "grad_norm"))
        latest = self.checkpoints.latest()
        good = f"the last good checkpoint is {self.checkpoints.path(latest)}" if latest else "no checkpoint yet"
        raise UserError(
            f"training diverged at step {step} (loss {loss}, gradient norm {norm}; {good}): "
            "lower config.train.lr, lengthen config.train.warmup or check the data"
        )

    def _log_training(self, metrics: dict[str, Array], speed: Speed) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items() if name != "finite"}
        rate = speed.images_per_second
        speed.forget()
        self.report.log(self.done, values["loss"], rate)
        if self.log:
            rates = {"train/images_per_second": rate} if rate else {}
            self.log.write(self.done, {f"train/{name}": value for name, value in values.items()} | rates)

    def _evaluate(self) -> None:
        values = self.evaluate(self.state.eval_params)
        self.report.say(f"step {self.done}  " + "  ".join(f"eval {name} {x:.4f}" for name, x in values.items()))
        if self.log:
            self.log.write(self.done, {f"eval/{name}": value for name, value in values.items()})
