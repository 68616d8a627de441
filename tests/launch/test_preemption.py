"""A training that is preempted three times, at random moments, and started again by the launcher each time."""

import os
import random
import re
import signal
import textwrap
import time

import numpy as np
import pytest

# 60 updates, with time between them in which a signal can come; tests/training/test_kill.py has more of its kind.
UNIT = """
    import os, pathlib, sys
    from tests.training import digits

    (workdir,) = (word.removeprefix("--workdir=") for word in sys.argv if word.startswith("--workdir="))
    with open(pathlib.Path(workdir) / "attempts.txt", "a") as file:
        file.write(f"{os.getpid()}\\n")
    sys.argv = ["digits", workdir, "--steps", "60", "--delay", "0.05", "--width", "64"]
    digits.main()
"""


def logged(workdir) -> int:
    """The last update that metrics.csv has a whole row of."""
    path = workdir / "metrics.csv"
    lines = path.read_text().splitlines()[1:-1] if path.exists() else []
    return max((int(line.split(",")[0]) for line in lines), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_three_preemptions_end_with_the_parameters_of_none(toy, tmp_path, seed):
    sweep = toy(preempted="", whole="")
    (sweep.root / "toy_unit.py").write_text(textwrap.dedent(UNIT))
    report = "def report(workdirs):\n    return launch.Report({'units': [{'unit': name} for name in workdirs]})\n"
    file = sweep.root / "experiments" / "toy.py"
    text = file.read_text()
    file.write_text(text[: text.index("def report")] + report + "\n" + text[text.index("if __name__") :])

    process = sweep.start(JAX_PLATFORMS="cpu", XDG_CACHE_HOME=str(tmp_path / "cache"))
    workdir = sweep.results / "preempted"
    dice = random.Random(seed)
    for count, update in enumerate(sorted(dice.sample(range(1, 40), 3)), 1):
        sweep.wait_for(lambda count=count: len(sweep.attempts("preempted")) == count or process.poll() is not None)
        sweep.wait_for(lambda update=update: logged(workdir) >= update or process.poll() is not None)
        time.sleep(dice.uniform(0.0, 0.05))  # anywhere in an update, not at its end only
        assert process.poll() is None, process.communicate()
        os.kill(sweep.attempts("preempted")[-1], signal.SIGTERM)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "preempted: was preempted and resumes (restart 3)" in error  # said of the exit code 75 only
    assert len(sweep.attempts("preempted")) == 4 and len(sweep.attempts("whole")) == 1
    log = (workdir / "log.txt").read_text()
    stops = re.findall(r"stopped by SIGTERM after step (\d+)", log)
    assert len(stops) == 3 and re.findall(r"resuming from step (\d+)", log) == stops
    with np.load(sweep.results / "whole" / "final.npz") as expected, np.load(workdir / "final.npz") as found:
        assert set(expected.files) == set(found.files)
        for name in expected.files:
            assert expected[name].tobytes() == found[name].tobytes(), name
