"""Sweeps on this machine: siblings of a lost unit, resuming, the cap, logs of failures, preemption, Ctrl-C."""

import json
import os
import signal

from jtok.launch.unit import DONE, FAILED
from tests.launch.toy import LIMIT


def test_a_unit_killed_by_hand_is_the_only_one_to_run_again(toy):
    sweep = toy(a="quick", b="hang", c="quick", d="quick")
    process = sweep.start("--max_parallel=2")
    sweep.wait_for(lambda: sweep.attempts("b") and (sweep.results / "a" / DONE).exists())
    os.kill(sweep.attempts("b")[0], signal.SIGKILL)
    out, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert "b: was killed by SIGKILL" in error and "1 of 4 units failed (b)" in error
    rows = json.loads((sweep.results / "report.json").read_text())["tables"]["values"]
    assert [row["unit"] for row in rows] == ["a", "c", "d"]

    code, out, error = sweep.run("--max_parallel=2")
    assert code == 0, error
    assert {unit: len(sweep.attempts(unit)) for unit in "abcd"} == {"a": 1, "b": 2, "c": 1, "d": 1}
    rows = json.loads((sweep.results / "report.json").read_text())["tables"]["values"]
    assert rows == [{"unit": u, "value": v} for u, v in zip("abcd", ["quick", "hang", "quick", "quick"], strict=True)]
    assert "hang" in out and "| a | quick |" in (sweep.results / "report.md").read_text()


def most_at_once(sweep, units):
    spans = [json.loads((sweep.results / unit / "times.json").read_text()) for unit in units]
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)


def test_no_more_units_run_at_once_than_allowed(toy):
    units = "abcdef"
    sweep = toy(**dict.fromkeys(units, "quick"))
    code, _, error = sweep.run("--max_parallel=3", f"--workdir={sweep.results}")
    assert code == 0, error
    assert most_at_once(sweep, units) in (2, 3)  # more than one, never more than three
    code, _, error = sweep.run("--max_parallel=1", f"--workdir={sweep.root / 'runs' / 'other'}")
    sweep.results = sweep.root / "runs" / "other"
    assert code == 0 and most_at_once(sweep, units) == 1


def test_a_failed_unit_shows_the_end_of_its_log_and_its_siblings_finish(toy):
    sweep = toy(a="fail", b="quick", c="quick")
    code, _, error = sweep.run()
    assert code == 1
    assert "a: failed with exit code 1; the end of " in error
    assert "ValueError: the toy broke" in error and "line 99" in error and "line 5\n" not in error
    assert json.loads((sweep.results / "a" / FAILED).read_text())["code"] == 1
    assert all((sweep.results / unit / DONE).exists() for unit in "bc")
    assert sweep.run()[0] == 0
    assert not (sweep.results / "a" / FAILED).exists()


def test_a_preempted_unit_is_started_again(toy):
    sweep = toy(a="preempted", b="quick")
    code, _, error = sweep.run()
    assert code == 0, error
    assert len(sweep.attempts("a")) == 3 and len(sweep.attempts("b")) == 1
    assert "a: was preempted and resumes (restart 2)" in error


def test_a_unit_terminated_while_it_has_no_handler_is_started_again(toy):
    sweep = toy(a="hang")
    process = sweep.start()
    sweep.wait_for(lambda: sweep.attempts("a"))
    os.kill(sweep.attempts("a")[0], signal.SIGTERM)
    _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, error
    assert "a: was preempted and resumes (restart 1)" in error and len(sweep.attempts("a")) == 2


def test_ctrl_c_leaves_nothing_running_and_the_same_command_goes_on(toy):
    sweep = toy(a="quick", b="hang", c="quick")
    process = sweep.start()
    sweep.wait_for(lambda: sweep.attempts("b"))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 130 and "interrupted; the same command resumes" in error
    assert not alive(sweep.attempts("b")[0])
    assert not (sweep.results / "b" / DONE).exists() and not sweep.attempts("c")
    assert sweep.run()[0] == 0
    assert len(sweep.attempts("a")) == 1 and len(sweep.attempts("b")) == 2


def test_a_launcher_that_is_terminated_exits_with_75(toy):
    sweep = toy(a="hang")
    process = sweep.start()
    sweep.wait_for(lambda: sweep.attempts("a"))
    process.terminate()
    process.communicate(timeout=LIMIT)
    assert process.returncode == 75 and not alive(sweep.attempts("a")[0])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_units_done_by_another_command_are_not_taken_for_these(toy):
    sweep = toy(a="quick")
    assert sweep.run()[0] == 0
    code, _, error = sweep.run("--config.kind=other")
    assert code == 2 and "holds what another command made" in error
    assert len(sweep.attempts("a")) == 1


def test_only_report_starts_nothing(toy):
    sweep = toy(a="quick", b="quick")
    code, _, error = sweep.run("--only_report")
    assert code == 2 and "no unit under" in error
    assert not sweep.attempts("a")
