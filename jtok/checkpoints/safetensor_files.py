"""Reads and writes safetensors: single files and Hugging Face directories, whole or sharded. Pickles are refused."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (gives numpy the bfloat16 that files may hold)
import numpy as np
import safetensors
import safetensors.numpy

from jtok.errors import UserError
from jtok.files import whole

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: A command that converts one; checkpoints of trainings hold the weights under one of these keys.
CONVERT = (
    """python -c "import torch, safetensors.torch as s; d = torch.load('{path}', 'cpu', weights_only=True); """
    """d = next((d[k] for k in ('ema', 'state_dict', 'model') if k in d), d); """
    """s.save_file({{k: v.clone().contiguous() for k, v in d.items() if torch.is_tensor(v)}}, '{out}')\""""
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Names and shapes of the tensors of a checkpoint; a tensor is read from disk when asked for."""

    source: Path
    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, Path]  # the file that holds each tensor
    metadata: Mapping[str, str]  # of the (first) file

    @functools.cached_property
    def config(self) -> dict[str, Any] | None:
        """The config.json in the directory or beside the file, if there is one."""
        beside = (self.source if self.source.is_dir() else self.source.parent) / "config.json"
        return read_json(beside) if beside.exists() else None

    def read(self, name: str) -> np.ndarray:
        """One tensor in float32. Raises UserError for a file that cannot be read (any more)."""
        with _opened(self.files[name]) as file:
            return np.asarray(file.get_tensor(name)).astype(np.float32)

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """(name, tensor in the file's own dtype), file by file, read one at a time. Raises as `read` does."""
        by_file = defaultdict(list)
        for name in names:
            by_file[self.files[name]].append(name)
        for path, its in by_file.items():
            with _opened(path) as file:
                for name in its:
                    yield name, file.get_tensor(name)


def open_weights(path: str | os.PathLike) -> Weights:
    """The checkpoint at `path`: a safetensors file, or a directory with model.safetensors or its sharded index.

    Raises UserError, one sentence each, for a path that is not there, pickled weights, a truncated or foreign file, a
    missing shard, and a broken index.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no checkpoint at '{path}': give a safetensors file or a Hugging Face directory.")
    return _collect(path, [path] if path.is_file() else _files_of(path))


def check_names(weights: Weights, *, missing: Collection[str], unknown: Collection[str]) -> None:
    """Raises one UserError that lists every missing and every unknown tensor, if there are any."""
    faults = [f"it lacks {', '.join(sorted(missing))}"] if missing else []
    faults += [f"it has unknown {', '.join(sorted(unknown))}"] if unknown else []
    if faults:
        raise UserError(f"'{weights.source}' does not fit the model: {' and '.join(faults)}.")


def wrong_shape(weights: Weights, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> UserError:
    """The sentence about a tensor of the wrong shape."""
    return UserError(f"tensor {name} of '{weights.source}' has shape {list(found)}, the model needs {list(wanted)}.")


def _files_of(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        files = sorted(directory.glob("*.safetensors"))
        if not files:
            pickled = any(p.suffix in PICKLES for p in directory.iterdir())
            why = "holds pickled weights only, which can run code" if pickled else "holds no safetensors file"
            raise UserError(f"'{directory}' {why}: save the model there as model.safetensors.")
        named = directory / "model.safetensors"
        if named not in files and len(files) > 1:
            raise UserError(f"'{directory}' holds {len(files)} safetensors files and no index: name the file to load.")
        return [named if named in files else files[0]]
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"'{index}' has no weight_map of tensors to files: fetch the index again.")
    shards = [directory / Path(name).name for name in sorted(set(table.values()))]
    missing = [p.name for p in shards if not p.exists()]
    if missing:
        raise UserError(f"'{directory}' lacks {', '.join(missing)}, named in its index: fetch the missing shards.")
    return shards


def _collect(source: Path, paths: list[Path]) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {}
    files: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        with _opened(path) as file:
            metadata = metadata or dict(file.metadata() or {})
            for name in file.keys():
                shapes[name] = tuple(file.get_slice(name).get_shape())
                files[name] = path
    return Weights(source, shapes, files, metadata)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.suffix in PICKLES:
        raise UserError(
            f"'{path}' is a pickle, which can run code when read: convert it to safetensors where you trust it, by "
            f"{CONVERT.format(path=path, out=path.with_suffix('.safetensors'))} for example."
        )
    try:
        with safetensors.safe_open(path, "np") as file:
            yield file
    except (safetensors.SafetensorError, OSError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"'{path}' is not a whole safetensors file ({reason}): fetch or write it again.") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError if it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is not readable JSON ({error}): fetch it again.") from None
    if not isinstance(value, dict):
        raise UserError(f"'{path}' holds a JSON {type(value).__name__} where an object should be: fetch it again.")
    return value


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file whole or not at all, making its directory if needed."""
    contiguous = {k: np.require(v, requirements="C") for k, v in tensors.items()}  # scalars stay scalars
    with whole(path) as beside:
        safetensors.numpy.save_file(contiguous, beside, dict(metadata))
        os.chmod(beside, 0o644)
