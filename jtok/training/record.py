"""What a run records so that it can be identified later: its config, versions and commit."""

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

import ml_collections

import jtok
from jtok.errors import UserError
from jtok.files import write_text

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def make_workdir(workdir: str | os.PathLike) -> Path:
    """The run's directory, created if needed. Raises UserError if nothing can be written there."""
    path = Path(workdir).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{socket.gethostname()}-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to the run directory {path}: choose another ({error.strerror})") from error
    return path


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, the file appearing whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def resolved(config: ml_collections.ConfigDict) -> dict:
    """The config as plain JSON values, references followed."""
    return json.loads(json.dumps(config.copy_and_resolve_references().to_dict(), default=str))


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """`train.lr: 0.1 -> 0.2` for every field that differs between two resolved configs."""
    changes = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            changes.append(f"{prefix}{name}: {before} -> {after}")
    return changes


def versions() -> dict[str, str]:
    """Python and the packages whose version can change a number."""
    found = {"python": platform.python_version(), "jtok": jtok.__version__}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def git_commit() -> dict[str, str | bool] | None:
    """`{"commit": hash, "dirty": bool}` of the repository that tracks this package; None for an installed copy."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment inside some other repository says no
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def write_records(workdir: Path, config: dict) -> list[str]:
    """Writes `config.json` and `versions.json`; returns the fields that differ from the config recorded before."""
    path = workdir / "config.json"
    try:
        before = json.loads(path.read_text()) if path.exists() else config
    except ValueError as error:
        raise UserError(f"{path} is not the config of a run: choose another run directory ({error})") from error
    write_json(path, config)
    write_json(workdir / "versions.json", {**versions(), "git": git_commit()})
    return differences(before, config)
