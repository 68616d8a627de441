"""Two processes train as one does, and take up each other's checkpoints."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.test_loop import rows, without_times

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600.0  # seconds; reached only where something hangs


def start(workdir, cache, *arguments, devices=1, **variables):
    flags = os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache), "XLA_FLAGS": flags} | variables
    command = [sys.executable, "-m", "tests.sharding.small", str(workdir), *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    """Waits for all of them; what one says goes to the report if any fails."""
    try:
        said = [process.communicate(timeout=LIMIT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), said


def both(workdir, cache, *arguments, devices=2):
    """Two processes with two devices each, which meet on the loopback."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [start(workdir, cache, *arguments, devices=devices, **shared, JAX_PROCESS_ID=str(i)) for i in (0, 1)]


def same(one, other):
    """Parameters, averages and moments up to the order of sums; the same rows in metrics.csv."""
    with np.load(one / "final.npz") as expected, np.load(other / "final.npz") as found:
        assert set(expected.files) == set(found.files)
        for name in expected.files:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=2e-5, err_msg=name)
    a, b = (without_times(rows(workdir)) for workdir in (one, other))
    assert a.keys() == b.keys()
    for key in a:
        assert float(b[key]) == pytest.approx(float(a[key]), rel=1e-4, abs=1e-5), key


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fsdp", "3"], "fsdp 3 times tensor 1 (config.mesh) does not divide the 4 devices"),
        (["--batch", "6"], "a batch of 6 (config.train.batch) must be a multiple of the 4 parts"),
        (["--tensor", "0"], "the mesh axis tensor (config.mesh.tensor) is 0; it must be at least 1"),
    ],
)
@pytest.mark.slow
def test_nothing_is_begun_for_what_the_devices_cannot_share(tmp_path, arguments, said):
    process = start(tmp_path / "run", tmp_path / "cache", *arguments, devices=4)
    error = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 2 and said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_mesh_of_four_devices_does_what_one_device_does(tmp_path):
    """With parameters shared along both axes, and a plan whose ops split the batch."""
    cache = tmp_path / "cache"
    finish(start(tmp_path / "one", cache, "--method", "tome"))
    finish(start(tmp_path / "four", cache, "--method", "tome", "--fsdp", "2", "--tensor", "2", devices=4))
    same(tmp_path / "one", tmp_path / "four")


@pytest.mark.slow
def test_two_processes_do_what_one_does_and_go_on_from_each_others_checkpoints(tmp_path):
    cache = tmp_path / "cache"
    finish(start(tmp_path / "one", cache))
    finish(*both(tmp_path / "two", cache, "--fsdp", "2"))
    same(tmp_path / "one", tmp_path / "two")
    for workdir, source in (("from_two", "two"), ("from_one", "one")):  # their checkpoints of step 5
        shutil.copytree(tmp_path / source, tmp_path / workdir)
        shutil.rmtree(tmp_path / workdir / "checkpoints" / "10")
    finish(start(tmp_path / "from_two", cache, devices=4))
    finish(*both(tmp_path / "from_one", cache, "--tensor", "4"))  # both read every batch whole
    for workdir in ("from_two", "from_one"):
        same(tmp_path / "one", tmp_path / workdir)
