"""A tokenizer in training against an adversary, killed with SIGKILL by `jtok train`'s user, ends with the same bits."""

import os
import signal
import subprocess
import sys

import pytest

from tests.training.test_kill import LIMIT, ROOT, no_process_left, running, wait_until  # noqa: F401
from tests.training.test_loop import rows, without_times

SMALL = {"tokens": 4, "codebook": 16, "encoder": "(32, 1, 2)", "decoder": "(32, 1, 2)", "image": 16}
STEPS = {"steps": 14, "warmup": 2, "batch": 8, "checkpoint_every": 4, "log_every": 1, "eval_every": 7}


def start(workdir, cache):
    flags = [f"--config.tokenizer.fields.{name}={value}" for name, value in SMALL.items()]
    flags += [f"--config.train.{name}={value}" for name, value in STEPS.items()]
    flags += ["--config.train.parts.discriminator.start=3", "--config.data.options.size=16"]
    command = [sys.executable, "-m", "jtok", "train", "--config=configs/tokenizer/titok.py:quick"]
    command += [f"--workdir={workdir}", "--config.data.eval_batch=1000"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(cache)}
    process = subprocess.Popen(command + flags, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    running.append(process)
    return process


@pytest.mark.slow
def test_killed_and_started_again_it_writes_the_same_model(tmp_path):
    whole = start(tmp_path / "whole", tmp_path / "cache")
    _, error = whole.communicate(timeout=LIMIT)
    assert whole.returncode == 0, error
    killed = start(tmp_path / "again", tmp_path / "cache")
    wait_until(killed, (tmp_path / "again" / "checkpoints" / "4").exists)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    again = start(tmp_path / "again", tmp_path / "cache")
    _, error = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, error
    assert "resuming from step" in error
    one, two = (tmp_path / name / "model.safetensors" for name in ("whole", "again"))
    assert one.read_bytes() == two.read_bytes()
    expected, found = (without_times(rows(tmp_path / name)) for name in ("whole", "again"))
    assert expected == found
    losses = [float(value) for (step, metric), value in expected.items() if metric == "train/square"]
    assert min(losses[-3:]) < losses[0]
