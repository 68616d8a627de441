"""Several processes that run one program: on a TPU pod by themselves, elsewhere by three environment variables."""

import glob
import os

import jax

from jtok.errors import UserError

#: What says where the first process listens, how many there are, and which one this is (0 is the first).
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
#: Seconds within which all processes must have met.
TIMEOUT = "JTOK_START_TIMEOUT"


def initialize() -> None:
    """Joins the other processes of this run, if there are any; to be called before any device is touched.

    With the environment variables of `VARIABLES` set, those say who takes part. On a TPU machine JAX asks the machine
    (its pod may be this machine alone). Elsewhere, and when called again, nothing happens.
    Raises UserError for variables that are not all there or make no sense, and where the processes do not meet.
    """
    if jax.distributed.is_initialized():
        return
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if given:
        address, count, index = _read(given)
        if count > 1:
            _join(coordinator_address=address, num_processes=count, process_id=index)
    elif _on_tpu():
        _join()


def _read(given: dict[str, str]) -> tuple[str, int, int]:
    if missing := [name for name in VARIABLES if name not in given]:
        raise UserError(f"{', '.join(given)} is set and {', '.join(missing)} is not: set all of them, or none.")
    address, count, index = (given[name] for name in VARIABLES)
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{VARIABLES[0]} is '{address}'; it must be the first process's host:port.")
    if not count.isdecimal() or int(count) < 1:
        raise UserError(f"{VARIABLES[1]} is '{count}'; it must be the number of processes, 1 or more.")
    if not index.isdecimal() or int(index) >= int(count):
        raise UserError(f"{VARIABLES[2]} is '{index}'; it must be one of 0 to {int(count) - 1}.")
    return address, int(count), int(index)


def _on_tpu() -> bool:
    """Whether TPU chips are plugged in here and JAX was not told to use something else."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "tpu" not in platforms.split(","):
        return False
    try:
        import libtpu  # noqa: F401
    except ImportError:
        return False
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def _join(**who: str | int) -> None:
    seconds = os.environ.get(TIMEOUT, "300")
    if not seconds.isdecimal() or not int(seconds):
        raise UserError(f"{TIMEOUT} is '{seconds}'; it must be a number of seconds, 1 or more.")
    try:
        jax.distributed.initialize(initialization_timeout=int(seconds), **who)
    except (RuntimeError, ValueError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"the processes of this run did not meet within {seconds} s ({said}): start all of them, with one address."
        ) from None
