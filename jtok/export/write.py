"""Exports: a directory that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jtok.errors import UserError
from jtok.export import card, program
from jtok.export.hugging_face import Names, save_tower
from jtok.export.source import Source


def safetensors(source: Source, out: str, names: Names = "transformers", storage: str = "float32") -> Path:
    """The tower under the names of transformers or timm, with config.json and a card. A plan is not in such files."""
    with _whole(out) as directory:
        stated = save_tower(directory, source.config, source.params, names, storage)
        kind = stated.get("architectures", [stated.get("architecture")])[0]
        form = {"format": "safetensors", "names": names, "class": kind, "storage": storage}
        card.write(source, form, directory)
    return Path(out)


def stablehlo(source: Source, out: str, *, kernels: bool = False, batch: int = 1) -> Path:
    """The tower with its plan as programs: model.stablehlo for every platform, or one for each accelerator."""
    with _whole(out) as directory:
        if kernels:
            programs = {f"model.{p}.stablehlo": program.with_kernels(source, p, batch) for p in program.ACCELERATORS}
        else:
            programs = {"model.stablehlo": program.portable(source)}
        for name, exported in programs.items():
            (directory / name).write_bytes(program.serialise(exported))
        exported = next(iter(programs.values()))
        outputs = exported.out_tree.unflatten(exported.out_avals)
        form = {
            "format": "stablehlo",
            "kernels": "Pallas; the CUDA program is for the release of JAX named under versions" if kernels else "none",
            "input": _shape(exported.in_avals[0]),
            "pixels": "bytes" if source.statistics else "normalised as the model's family does",
            **{f"output {name}": _shape(a) for name, a in outputs.items()},
            "platforms": {name: list(exported.platforms) for name, exported in programs.items()},
        }
        card.write(source, form, directory)
    return Path(out)


def _shape(a) -> str:
    return f"{a.dtype}[{', '.join(map(str, a.shape))}]"


@contextlib.contextmanager
def _whole(out: str) -> Iterator[Path]:
    """A directory beside `out` that takes its name once all is written. Raises UserError if `out` cannot be written."""
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"'{path}' exists already: give --out a new directory.")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write '{path}': choose another place ({error.strerror}).") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
