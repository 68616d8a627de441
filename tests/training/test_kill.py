"""A run killed at any moment, then started again, ends with the bits of one that was not."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from jtok.training import train
from tests.training.digits import Digits, small_config
from tests.training.test_loop import rows, without_times

ROOT = Path(__file__).resolve().parents[2]
# Wide enough that writing a checkpoint takes a while; slow enough that a kill lands inside the run.
ARGUMENTS = "--steps", "40", "--width", "4000", "--delay", "0.03"


LIMIT = 300.0  # seconds for a step that takes a few; reached only where something hangs
running: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def no_process_left():
    yield
    while running:
        running.pop().kill()


def start(workdir, cache, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", "tests.training.digits", str(workdir), *ARGUMENTS, *arguments]
    running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    return running[-1]


def wait_until(process, condition):
    """Polls until `condition()` holds; fails if the process ends or the time is up first."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.0005)


def unfinished(workdir):
    return list((workdir / "checkpoints").glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))


def logged_beyond(workdir, step):
    """Whether metrics.csv has a row beyond `step`; as read while another process writes it."""
    path = workdir / "metrics.csv"
    lines = path.read_text().splitlines()[1:-1] if path.exists() else []
    return any(int(line.split(",")[0]) > step for line in lines)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir, cache = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cache")
    process = start(workdir, cache)
    _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, error
    return workdir, cache


@pytest.mark.slow
def test_killed_twice_and_terminated_once_ends_with_the_same_bits(uninterrupted, tmp_path):
    whole, cache = uninterrupted
    pause = random.uniform(0.0, 0.5)
    print(f"killed {pause:.3f} s after the first row")  # shown if the test fails

    process = start(tmp_path, cache)  # killed at a random moment
    wait_until(process, lambda: logged_beyond(tmp_path, 0))
    time.sleep(pause)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    process = start(tmp_path, cache)  # killed while a checkpoint is written
    wait_until(process, lambda: (tmp_path / "checkpoints").exists() and not unfinished(tmp_path))
    wait_until(process, lambda: unfinished(tmp_path))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert unfinished(tmp_path), "the kill came too late to interrupt the writing"

    process = start(tmp_path, cache)  # terminated politely
    wait_until(process, lambda: logged_beyond(tmp_path, 20))
    process.terminate()
    _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 75, error
    assert "stopped by SIGTERM after step" in error

    process = start(tmp_path, cache)
    _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, error
    assert "resuming from step" in error
    with np.load(whole / "final.npz") as expected, np.load(tmp_path / "final.npz") as found:
        assert set(expected.files) == set(found.files)
        for name in expected.files:
            assert expected[name].tobytes() == found[name].tobytes(), name
    assert without_times(rows(tmp_path)) == without_times(rows(whole))
    assert not unfinished(tmp_path)


@pytest.mark.slow
def test_two_devices_do_what_one_does(tmp_path):
    """Rows split over two devices, parameters on both: the same up to the order of sums."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "tests.training.digits", str(tmp_path / "two"), "--steps", "20"]
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert result.returncode == 0, result.stderr
    train(small_config(steps=20, ema=0.99), tmp_path / "one", Digits(), progress=False)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert without_times(one).keys() == without_times(two).keys()
    for step in (5, 10, 20):
        assert float(two[step, "train/loss"]) == pytest.approx(float(one[step, "train/loss"]), rel=1e-4)
    assert float(two[20, "eval/accuracy"]) == pytest.approx(float(one[20, "eval/accuracy"]), abs=0.02)


@pytest.mark.slow
def test_two_processes_stop_at_one_step_and_go_on(tmp_path):
    """Each reads half of every batch; one of them is terminated, both save the same step and leave."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        coordinator = f"localhost:{probe.getsockname()[1]}"

    def both():
        distributed = "--coordinator", coordinator, "--steps", "60", "--delay", "0.2", "--process"
        return [start(tmp_path / "two", tmp_path / "cache", *distributed, str(index)) for index in (0, 1)]

    lead, other = both()
    wait_until(lead, lambda: logged_beyond(tmp_path / "two", 0))
    other.terminate()
    errors = [process.communicate(timeout=LIMIT)[1] for process in (lead, other)]
    assert [lead.returncode, other.returncode] == [75, 75], errors
    stops = [re.search(r"stopped by preemption after step (\d+)", error) for error in errors]
    assert stops[0] and stops[1] and stops[0][1] == stops[1][1]
    errors = [process.communicate(timeout=LIMIT)[1] for process in both()]
    assert f"resuming from step {stops[0][1]}" in errors[0], errors
    train(small_config(steps=60, ema=0.99), tmp_path / "one", Digits(width=4000), progress=False)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert without_times(one).keys() == without_times(two).keys()
    assert float(two[5, "train/loss"]) == pytest.approx(float(one[5, "train/loss"]), rel=1e-4)
    assert float(two[60, "eval/accuracy"]) == pytest.approx(float(one[60, "eval/accuracy"]), abs=0.02)
