"""What is kept, what comes back, and what is said when a checkpoint is not one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jtok.errors import UserError
from jtok.training import optimizer
from jtok.training.checkpoint import Checkpoints, DataPosition, load_params
from jtok.training.state import create, named_leaves, trainable_names
from tests.training.digits import small_config


def make_state(width=8, *, extra=False, ema=True):
    values = jax.random.normal(jax.random.key(3), (64, width))
    params = {"hidden": {"kernel": values, "bias": jnp.arange(width, dtype=jnp.float32)}}
    if extra:
        params["head"] = jnp.ones(3)
    names = trainable_names(params, None)
    return create(params, names, optimizer.build(small_config().train), ema=ema, key=jax.random.key(5))


def save(directory, *steps, state=None, keep=2):
    with Checkpoints(directory, keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, state or make_state(), DataPosition({"index": step}), {"seed": 0})
        checkpoints.wait()


def restore(directory, like, step=None):
    with Checkpoints(directory, 2) as checkpoints:
        return checkpoints.restore(step or checkpoints.latest(), like)


def test_round_trip_is_bit_identical_and_keeps_the_newest(tmp_path):
    state = make_state()
    save(tmp_path, 3, 7, 11, 12, state=state)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [11, 12]
    back, data = restore(tmp_path, jax.tree.map(lambda x: x * 0 if x.dtype == jnp.float32 else x, state))
    assert data.state == {"index": 12}
    for name, leaf in named_leaves(state).items():
        found = named_leaves(back)[name]
        if name == "key":
            leaf, found = jax.random.key_data(leaf), jax.random.key_data(found)
        np.testing.assert_array_equal(leaf, found, err_msg=name)
        assert leaf.dtype == found.dtype


def test_saving_a_stored_step_again_changes_nothing(tmp_path):
    save(tmp_path, 4)
    save(tmp_path, 4, state=make_state(ema=False))
    assert restore(tmp_path, make_state())[1].state == {"index": 4}


def test_a_position_is_a_snapshot():
    live = {"index": 1, "inner": {"at": [1, 2]}}
    position = DataPosition(live)
    live["inner"]["at"].append(3)
    assert position.state == {"index": 1, "inner": {"at": [1, 2]}}


def test_another_model_lists_every_difference(tmp_path):
    save(tmp_path, 4)
    with pytest.raises(UserError) as error:
        restore(tmp_path, make_state(width=9, extra=True))
    text = str(error.value)
    assert str(tmp_path / "4") in text and "of another model" in text
    assert "params.hidden.kernel is float32[64, 8] and should be float32[64, 9]" in text
    assert "params.hidden.bias is float32[8] and should be float32[9]" in text
    assert "params.head is missing" in text
    with pytest.raises(UserError, match="ema.hidden.bias is unknown"):
        restore(tmp_path, make_state(ema=False))


def test_a_truncated_or_missing_file_is_named(tmp_path, capfd):
    """Cuts, then removes, each file that holds something: one sentence names the checkpoint, nothing else is said."""
    state = make_state(width=1024)  # large enough for values to lie in files of their own
    save(tmp_path, 2, 5, state=state)
    marks = ("commit_success.txt", "_CHECKPOINT_METADATA")  # of Orbax; the state comes back without them
    files = [path for path in sorted((tmp_path / "5").rglob("*")) if path.is_file() and path.name not in marks]
    assert len(files) > 8 and max(path.stat().st_size for path in files) > 100_000
    capfd.readouterr()
    with Checkpoints(tmp_path, 2) as checkpoints:
        for path in files:
            content = path.read_bytes()
            for damage in (lambda path, half: path.write_bytes(half), lambda path, half: path.unlink()):
                damage(path, content[: len(content) // 2])
                with pytest.raises(UserError, match="delete that directory to resume from step 2 ") as error:
                    checkpoints.restore(5, state)
                assert f"cannot read the checkpoint {tmp_path / '5'}: " in str(error.value), path
                assert "\n" not in str(error.value)
                path.write_bytes(content)
    assert capfd.readouterr() == ("", "")
    restore(tmp_path, state, 5)


def test_corrupt_values_are_named(tmp_path):
    """One byte of an array changed in place."""
    state = make_state(width=1024)
    save(tmp_path, 5, state=state)
    largest = max((tmp_path / "5" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 255
    largest.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read the checkpoint {tmp_path / '5'}: choose another directory"):
        restore(tmp_path, state)


def test_what_a_killed_writer_left_is_removed_by_the_next_one_only(tmp_path):
    save(tmp_path / "checkpoints", 2)
    left = tmp_path / "checkpoints" / f"4{ocp.utils.TMP_DIR_SUFFIX}"
    (left / "state").mkdir(parents=True)
    params, step = load_params(tmp_path, make_state().params)
    assert step == 2 and left.exists()
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        assert checkpoints.latest() == 2 and not left.exists()


def test_no_run_to_load_from(tmp_path):
    with pytest.raises(UserError, match="checkpoints does not exist"):
        load_params(tmp_path, make_state().params)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        load_params(tmp_path, make_state().params)


def test_a_foreign_directory_is_named(tmp_path):
    foreign = tmp_path / "6"
    (foreign / "weights").mkdir(parents=True)
    (foreign / "weights" / "model.bin").write_bytes(b"not ours")
    with pytest.raises(UserError, match=str(foreign)):
        restore(tmp_path, make_state(), 6)


def test_a_file_in_place_of_the_directory_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=f"{tmp_path / 'checkpoints'} is a file"):
        Checkpoints(tmp_path / "checkpoints", 2)


def test_parameters_alone_are_the_averaged_ones_where_there_is_an_average(tmp_path):
    state = make_state()
    state = dataclasses.replace(state, ema=jax.tree.map(lambda x: x + 1, state.params))
    save(tmp_path / "with", 1, state=state)
    save(tmp_path / "without", 1, state=dataclasses.replace(state, ema=None))
    like = jax.tree.map(jnp.zeros_like, state.params)
    for name, expected in [("with", state.ema), ("without", state.params)]:
        with Checkpoints(tmp_path / name, None) as checkpoints:
            jax.tree.map(np.testing.assert_array_equal, checkpoints.restore_params(1, like), expected)
    with pytest.raises(UserError, match="ema.head is missing"), Checkpoints(tmp_path / "with", None) as checkpoints:
        checkpoints.restore_params(1, like | {"head": jnp.ones(2)})


def test_the_config_lies_beside_the_state(tmp_path):
    save(tmp_path, 1)
    assert json.loads((tmp_path / "1" / "config" / "metadata").read_text()) == {"seed": 0}
