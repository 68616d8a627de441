"""What the environment may say about processes, and what is refused before any device is touched."""

import jax
import pytest

from jtok import distributed
from jtok.errors import UserError

GIVEN = {"JAX_COORDINATOR_ADDRESS": "localhost:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` was called with."""
    calls = []
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **who: calls.append(who))
    return calls


def test_the_environment_names_the_processes(joined, monkeypatch):
    distributed.initialize()
    assert joined == []  # no variables, and the tests run on the CPU
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    who = {"coordinator_address": "localhost:1234", "num_processes": 2, "process_id": 1}
    assert joined == [{"initialization_timeout": 300, **who}]
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    distributed.initialize()
    assert len(joined) == 1  # one process has nobody to wait for


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"JAX_PROCESS_ID": ""}, "is set and JAX_PROCESS_ID is not"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost"}, "must be the first process's host:port"),
        ({"JAX_NUM_PROCESSES": "two"}, "must be the number of processes"),
        ({"JAX_PROCESS_ID": "2"}, "must be one of 0 to 1"),
        ({"JTOK_START_TIMEOUT": "soon"}, "must be a number of seconds"),
    ],
)
def test_one_sentence_for_what_makes_no_sense(joined, monkeypatch, change, said):
    for name, value in {**GIVEN, **change}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        distributed.initialize()
    assert joined == []


def test_processes_that_do_not_meet(joined, monkeypatch):
    def alone(**who):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.")

    monkeypatch.setattr(jax.distributed, "initialize", alone)
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="did not meet within 300 s .DEADLINE_EXCEEDED"):
        distributed.initialize()
