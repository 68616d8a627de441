import itertools
import json

import grain.python as grain
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jtok.data import batches, digit_scenes, make_dataset, pipeline
from jtok.errors import UserError

NUMBERS = grain.MapDataset.source([{"image": np.full(2, i, np.uint8), "label": np.int32(i)} for i in range(22)])


def labels(iterable, count=None):
    return [batch["label"].tolist() for batch in itertools.islice(iter(iterable), count)]


def test_an_epoch_has_every_example_once_and_the_next_another_order():
    rows = sum(labels(batches(NUMBERS, batch=11, seed=1, shuffle=True, epochs=2)), [])
    assert sorted(rows[:22]) == sorted(rows[22:]) == list(range(22))
    assert rows[:22] != rows[22:] and rows[:22] != list(range(22))
    again = sum(labels(batches(NUMBERS, batch=11, seed=1, shuffle=True, epochs=2)), [])
    other = sum(labels(batches(NUMBERS, batch=11, seed=2, shuffle=True, epochs=2)), [])
    assert rows == again and rows != other


def test_the_remainder():
    kept = labels(batches(NUMBERS, batch=8, epochs=1, drop_remainder=False))
    dropped = labels(batches(NUMBERS, batch=8, epochs=1))
    assert [len(rows) for rows in kept] == [8, 8, 6] and dropped == kept[:2]
    assert len(labels(batches(NUMBERS, batch=8, epochs=3))) == 8  # 66 rows: epochs follow without a gap
    assert len(labels(batches(NUMBERS, batch=8), 100)) == 100


@pytest.mark.parametrize("count", [2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(count):
    options = {"batch": 8, "seed": 5, "shuffle": True, "epochs": 3}
    whole = labels(batches(NUMBERS, **options))
    parts = [labels(batches(NUMBERS, **options, process_index=p, process_count=count)) for p in range(count)]
    assert [sum(rows, []) for rows in zip(*parts, strict=True)] == whole


def test_a_short_last_batch_is_filled_up_where_processes_share_it():
    options = {"batch": 7, "epochs": 1, "drop_remainder": False}
    parts = [list(batches(NUMBERS, **options, process_index=p, process_count=2)) for p in range(2)]
    assert [len(batch["label"]) for batch in parts[0] + parts[1]] == [4] * 6  # 7 rows cannot be halved: 8
    real = [batch["label"][batch["valid"]].tolist() for pair in zip(*parts, strict=True) for batch in pair]
    assert sum(real, []) == list(range(22))


def test_a_process_may_hold_parts_that_are_not_neighbours():
    """As on a slice whose mesh goes along rows of chips and whose machines hold squares of them."""
    whole = labels(batches(NUMBERS, batch=8, epochs=1))
    rows = labels(pipeline._rows_of(NUMBERS[:16], 8, (0, 1, 3), 4).to_iter_dataset())
    assert rows == [[*batch[:4], *batch[6:]] for batch in whole]


@pytest.mark.parametrize("prefetch", [0, 3])
def test_resuming_from_a_state_goes_on_exactly(prefetch):
    def start():
        return iter(batches(digit_scenes("train"), batch=4, seed=9, shuffle=True, prefetch=prefetch))

    iterator = start()
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    rest = [next(iterator) for _ in range(2)]
    resumed = start()
    next(resumed)
    resumed.set_state(state)
    for batch in rest:
        other = next(resumed)
        assert all(np.array_equal(batch[key], other[key]) for key in batch)


def test_resuming_with_augmentation_and_a_corrupt_image(stored):
    name, path = stored(corrupt=1)

    def start():
        dataset = make_dataset(name, "train", path=path, size=12, seed=3)
        return iter(batches(dataset, batch=2, seed=9, shuffle=True))

    iterator = start()
    for _ in range(4):
        next(iterator)
    state = iterator.get_state()
    rest = [next(iterator) for _ in range(4)]
    resumed = start()
    resumed.set_state(state)
    assert all(np.array_equal(batch["image"], next(resumed)["image"]) for batch in rest)


def test_augmentation_differs_between_epochs_and_only_the_train_split_has_it(stored):
    name, path = stored()
    rows = list(batches(make_dataset(name, "train", path=path, size=12), batch=5, epochs=2))
    assert np.array_equal(rows[0]["label"], rows[1]["label"])
    assert not np.array_equal(rows[0]["image"], rows[1]["image"])
    rows = list(batches(make_dataset(name, "train", path=path, size=12, augment=False), batch=5, epochs=2))
    assert np.array_equal(rows[0]["image"], rows[1]["image"])


def test_the_iterator_is_part_of_an_orbax_checkpoint(tmp_path):
    loader = batches(NUMBERS, batch=4, seed=0, shuffle=True)
    iterator = iter(loader)
    next(iterator)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.Composite(data=grain.PyGrainCheckpointSave(iterator)))
        manager.wait_until_finished()
        expected = labels(iterator, 3)
        fresh = iter(loader)
        manager.restore(1, args=ocp.args.Composite(data=grain.PyGrainCheckpointRestore(fresh)))
    assert labels(fresh, 3) == expected


@pytest.mark.slow
def test_worker_processes_change_nothing():
    options = {"batch": 4, "seed": 2, "shuffle": True, "epochs": 4}
    alone = labels(batches(NUMBERS, **options))
    loader = batches(NUMBERS, **options, workers=2)
    iterator = iter(loader)
    first = labels(iterator, 5)
    state = iterator.get_state()
    rest = labels(iterator)
    iterator.close()
    assert first + rest == alone
    resumed = iter(loader)
    resumed.set_state(state)
    assert labels(resumed) == rest
    resumed.close()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"batch": 0}, "The batch is 0; it must be a positive"),
        ({"batch": 6, "process_index": 0, "process_count": 4}, "multiple of the 4 parts"),
        ({"batch": 6, "process_index": 2, "process_count": 2}, "index 2 is not one of 2"),
        ({"batch": 23, "epochs": 1}, "hold 22 examples, fewer than one batch of 23"),
        ({"batch": 2, "epochs": 0}, "at least 1"),
        ({"batch": 2, "seed": -1}, "The seed is -1"),
        ({"batch": 2, "workers": -1}, "must not be negative"),
    ],
)
def test_bad_batches(arguments, words):
    with pytest.raises(UserError, match=words):
        batches(NUMBERS, **arguments)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("digit_scene", {}, "no data set 'digit_scene'; did you mean digit_scenes"),
        ("imagenet", {}, "no data set 'imagenet'"),
        ("digit_scenes", {"sizes": 64}, "no option 'sizes'; it takes size"),
        ("folder", {"pth": "x"}, "no option 'pth'; it takes path"),
        ("photos", {"split": "tst"}, "no split 'tst'; the splits are train, validation, test"),
    ],
)
def test_bad_data_sets(name, options, words):
    with pytest.raises(UserError, match=words):
        make_dataset(name, **{"split": "train", **options})
