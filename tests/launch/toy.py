"""A toy experiment in a directory of its own, whose units take a fraction of a second and need no JAX."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600.0  # seconds for what takes a few; reached only where something hangs

EXPERIMENT = '''
    """Do four units run?"""
    import sys
    from jtok import launch

    CONFIG = "configs/toy.py"
    COMMAND = ("toy_unit",)

    def sweep():
        for name, kind in {kinds}.items():
            yield name, {{"kind": kind}}

    def report(workdirs):
        rows = [{{"unit": name, "value": (path / "value.txt").read_text()}} for name, path in workdirs.items()]
        return launch.Report({{"values": rows}})

    if __name__ == "__main__":
        sys.exit(launch.main(globals()))
'''

UNIT = """
    import json, os, pathlib, sys, time

    flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    here, kind = pathlib.Path(flags["workdir"]), flags["config.kind"]
    attempts = here / "attempts.txt"
    with open(attempts, "a") as file:
        file.write(f"{os.getpid()}\\n")
    count = len(attempts.read_text().split())
    begin = time.time()
    if kind == "fail" and count == 1:
        print("\\n".join(f"line {i}" for i in range(100)))
        raise ValueError("the toy broke")
    if kind == "preempted" and count <= 2:
        sys.exit(75)
    time.sleep(60 if kind == "hang" and count == 1 else 0.3)
    (here / "value.txt").write_text(kind)
    (here / "times.json").write_text(json.dumps([begin, time.time()]))
"""


class Toy:
    """The experiment in `root`, started as a user starts it."""

    def __init__(self, root: Path, **kinds: str):
        self.root, self.results = root, root / "runs" / "toy"
        for folder in ("experiments", "configs"):
            (root / folder).mkdir()
        (root / "experiments" / "toy.py").write_text(textwrap.dedent(EXPERIMENT.format(kinds=kinds)))
        (root / "configs" / "toy.py").write_text("def get_config(): ...\n")
        (root / "toy_unit.py").write_text(textwrap.dedent(UNIT))
        self.started: list[subprocess.Popen] = []

    def start(self, *flags: str, **environment: str) -> subprocess.Popen:
        command = [sys.executable, str(self.root / "experiments" / "toy.py"), *flags]
        paths = {"PYTHONPATH": os.pathsep.join([str(self.root), str(ROOT)])}
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=os.environ | paths | environment, stdout=pipe, stderr=pipe, text=True)
        self.started.append(process)
        return process

    def run(self, *flags: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*flags, **environment)
        out, error = process.communicate(timeout=LIMIT)
        return process.returncode, out, error

    def attempts(self, unit: str) -> list[int]:
        """Process ids of the attempts at a unit."""
        path = self.results / unit / "attempts.txt"
        return [int(word) for word in path.read_text().split()] if path.exists() else []

    def wait_for(self, condition) -> None:
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end, "the sweep did not get that far"
            time.sleep(0.02)


@pytest.fixture
def toy(tmp_path):
    """Makes a Toy; whatever it started is ended with the test."""
    made = []

    def make(**kinds: str) -> Toy:
        made.append(Toy(tmp_path, **kinds))
        return made[-1]

    yield make
    for process in (process for one in made for process in one.started):
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=LIMIT)
