"""A whole run: what it leaves behind, how it resumes, and how it stops."""

import csv
import json
import signal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jtok.errors import UserError
from jtok.training import Stopped, record, train
from jtok.training.checkpoint import Checkpoints
from jtok.training.evaluation import Evaluator, pad_rows
from jtok.training.metrics import MetricLog, truncate_csv
from jtok.training.state import named_leaves
from tests.training.digits import Digits, Shuffled, small_config


def rows(workdir):
    with (workdir / "metrics.csv").open() as file:
        return {(int(row["step"]), row["metric"]): row["value"] for row in csv.DictReader(file)}


def same_bits(one, other):
    for name, leaf in named_leaves((one.params, one.ema, one.opt_state)).items():
        np.testing.assert_array_equal(leaf, named_leaves((other.params, other.ema, other.opt_state))[name], name)


def without_times(metrics):
    return {key: value for key, value in metrics.items() if not key[1].endswith("images_per_second")}


class GrainDigits(Digits):
    """The same task fed by Grain, with its reading threads."""

    def train_data(self):
        images, labels = self.train_set
        source = (
            grain.MapDataset.range(len(images))
            .shuffle(seed=1)
            .repeat()
            .map(lambda i: {"image": images[i], "label": labels[i]})
        )
        return source.batch(self.batch, drop_remainder=True).to_iter_dataset()


class Interrupted(Digits):
    """Raises a signal while its n-th batch is read."""

    def __init__(self, number, at, **options):
        super().__init__(**options)
        self.number, self.at = number, at

    def train_data(self):
        class Raising(Shuffled):
            def __next__(raising):
                if raising.index == self.at:
                    signal.raise_signal(self.number)
                return super().__next__()

        return Raising(*self.train_set, self.batch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of 40 updates."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(small_config(ema=0.9), workdir, Digits(), progress=False)


def test_it_learns_and_leaves_its_records(finished):
    workdir, state = finished
    logged = rows(workdir)
    assert int(state.step) == 40
    assert float(logged[40, "eval/accuracy"]) > 0.4  # chance is 0.1
    assert {step for step, name in logged if name == "train/loss"} == set(range(5, 41, 5))
    assert {step for step, name in logged if name == "eval/accuracy"} == {20, 40}
    assert float(logged[5, "train/lr"]) == pytest.approx(1e-2)
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [30, 40]
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 40
    versions = json.loads((workdir / "versions.json").read_text())
    assert versions["jax"] == jax.__version__ and {"python", "jtok", "orbax-checkpoint", "git"} <= set(versions)


def test_tensorboard_reads_what_was_written(finished):
    events = EventAccumulator(str(finished[0] / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(5, 41, 5))
    logged = rows(finished[0])
    assert events.Scalars("eval/accuracy")[-1].value == pytest.approx(float(logged[40, "eval/accuracy"]), rel=1e-6)


def test_a_finished_run_is_not_run_again(finished, capsys):
    workdir, state = finished
    before = (workdir / "metrics.csv").read_text()
    same_bits(state, train(small_config(ema=0.9), workdir, Digits()))
    assert (workdir / "metrics.csv").read_text() == before
    assert "finished already at step 40" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_call_goes_on(finished, tmp_path, number):
    config = small_config(ema=0.9)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step 17, saved in") as stopped:
        train(config, tmp_path, Interrupted(number, at=17), progress=False)
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert stopped.value.exit_code == 75
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest() == 17
    # The batch after the last consumed one had been read already: its place in the data must not be what is saved.
    assert json.loads(next((tmp_path / "checkpoints" / "17" / "data").iterdir()).read_text())["state"] == {"index": 17}
    same_bits(finished[1], train(config, tmp_path, Digits(), progress=False))
    assert without_times(rows(tmp_path)) == without_times(rows(finished[0]))


def test_grain_resumes_with_its_reading_threads(tmp_path):
    config = small_config(eval_every=0)
    whole = train(config, tmp_path / "whole", GrainDigits(), progress=False)

    class Halting(GrainDigits):
        def train_data(halting):
            source = super().train_data()

            class Wrapped:
                def __iter__(wrapped):
                    wrapped.inner, wrapped.count = iter(source), 0
                    return wrapped

                def __next__(wrapped):
                    wrapped.count += 1
                    if wrapped.count == 14:
                        signal.raise_signal(signal.SIGTERM)
                    return next(wrapped.inner)

                def get_state(wrapped):
                    return wrapped.inner.get_state()

            return Wrapped()

    with pytest.raises(Stopped, match="after step 13"):
        train(config, tmp_path / "parts", Halting(), progress=False)
    same_bits(whole, train(config, tmp_path / "parts", GrainDigits(), progress=False))


def test_divergence_names_the_step_and_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError) as error:
        train(small_config(), tmp_path, Digits(poison=22), progress=False)
    assert "diverged at step 23 (loss nan" in str(error.value)
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '20'}" in str(error.value)
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest() == 20
        params = checkpoints.restore_params(20, Digits().init(jax.random.key(0)))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
    with pytest.raises(UserError, match="at step 10 .*no checkpoint yet"):  # at a step that would have been saved
        train(small_config(), tmp_path / "other", Digits(poison=9), progress=False)
    assert not any((tmp_path / "other" / "checkpoints").iterdir())


def test_another_model_in_the_same_directory_is_refused_and_nothing_lost(finished):
    workdir = finished[0]
    before = (workdir / "config.json").read_text(), (workdir / "metrics.csv").read_text()
    with pytest.raises(UserError, match=f"{workdir / 'checkpoints' / '40'} is of another model"):
        train(small_config(ema=0.9), workdir, Digits(width=7), progress=False)
    assert before == ((workdir / "config.json").read_text(), (workdir / "metrics.csv").read_text())


def test_a_changed_config_is_said():
    assert record.differences({"a": 1, "t": {"x": 1, "y": 2}}, {"a": 1, "t": {"x": 3, "y": 2}, "z": 0}) == [
        "t.x: 1 -> 3",
        "z: None -> 0",
    ]


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write to the run directory {tmp_path / 'file' / 'run'}"):
        train(small_config(), tmp_path / "file" / "run", Digits(), progress=False)


def test_data_that_end_are_an_error(tmp_path):
    class Ending(Digits):
        def train_data(self):
            class Once(Shuffled):
                def __next__(once):
                    if once.index == 12:
                        raise StopIteration
                    return super().__next__()

            return Once(*self.train_set, self.batch)

    with pytest.raises(UserError, match="ended after 12 of 40 steps"):
        train(small_config(), tmp_path, Ending(), progress=False)


def test_everything_frozen_is_an_error(tmp_path):
    class Frozen(Digits):
        def trainable(self, params):
            return False

    with pytest.raises(UserError, match="every parameter is frozen"):
        train(small_config(), tmp_path, Frozen(), progress=False)


def test_hidden_transfers_in_the_hot_loop_are_refused(tmp_path):
    class Careless(Digits):
        def train_data(self):
            class Moving(Shuffled):
                def __next__(moving):
                    batch = super().__next__()
                    return batch | {"image": np.asarray(jnp.sin(1.0) * 0 + batch["image"])}

            return Moving(*self.train_set, self.batch)

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(small_config(), tmp_path, Careless(), progress=False)


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    train(small_config(steps=10), tmp_path, Digits())
    error = capsys.readouterr().err
    assert "step 5/10  loss " in error and "images/s" in error and " left" in error
    assert "step 10  eval accuracy" in error
    assert capsys.readouterr().out == ""


def test_csv_forgets_what_lies_beyond_the_restored_step(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,metric,value\n5,train/loss,2\n10,train/loss,1\n15,train/loss,0.5\n20,train/lo")
    truncate_csv(path, 10)
    assert path.read_text() == "step,metric,value\n5,train/loss,2\n10,train/loss,1\n"
    with MetricLog(tmp_path, 5) as log:
        log.write(10, {"train/loss": 0.123456789})
    assert path.read_text() == "step,metric,value\n5,train/loss,2\n10,train/loss,0.123456789\n"
    truncate_csv(path, 0)
    assert path.read_text() == "step,metric,value\n"
    path.write_text("step,met")  # killed while the header was written
    truncate_csv(path, 0)
    assert path.read_text() == "step,metric,value\n"
    path.write_text("epoch;loss\n1;2\n")
    with pytest.raises(UserError, match="metrics.csv is not a metrics file"):
        truncate_csv(path, 0)


def test_tensorboard_forgets_what_lies_beyond_the_restored_step(tmp_path):
    for start, steps in [(0, (5, 10, 15)), (10, (15, 20))]:
        with MetricLog(tmp_path, start) as log:
            for step in steps:
                log.write(step, {"x": float(step + start)})
    scalars = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("x")
    assert [(event.step, event.value) for event in scalars] == [(5, 5.0), (10, 10.0), (15, 25.0), (20, 30.0)]


def test_evaluation_counts_each_valid_row_once():
    """Ragged batches, one with padding of its own: the mean equals that of numpy over the valid rows."""

    class Rows(Digits):
        def evaluate(self, params, batch):
            return {"value": batch["x"] * params["scale"]}

        def eval_data(self):
            yield {"x": np.arange(5, dtype=np.float32), "valid": np.array([1, 1, 0, 1, 1], bool)}
            yield {"x": np.full(3, 10, np.float32)}

    mean = Evaluator(Rows())({"scale": jnp.float32(2.0)})["value"]
    assert mean == pytest.approx(2 * (0 + 1 + 3 + 4 + 30) / 7)
    padded, valid = pad_rows({"x": np.arange(2), "valid": np.array([True, False])}, 4)
    assert valid.tolist() == [True, False, False, False] == padded["valid"].tolist()
    Rows.eval_data = lambda self: iter(())
    with pytest.raises(UserError, match="have no rows"):
        Evaluator(Rows())({"scale": jnp.float32(2.0)})
