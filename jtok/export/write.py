"""Exports: a directory that appears whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jtok.errors import UserError
from jtok.export import card, program
from jtok.export.program import Program
from jtok.files import whole

Facts = Mapping[str, Any]


def safetensors(out: str, save: Callable[[Path], Mapping[str, Any]], facts: Callable[[], Facts]) -> Path:
    """Weights under other libraries' names, with a card.

    save: writes the files into a directory and returns what the card says of their form. A plan is not in such files.
    """
    with _whole(out) as directory:
        form = save(directory)
        card.write(dict(facts()), {"format": "safetensors", **form}, directory)
    return Path(out)


def stablehlo(
    out: str, programs: Sequence[Program], facts: Callable[[], Facts], *, kernels: bool = False, batch: int = 0
) -> Path:
    """Programs as NAME.stablehlo for every platform, or with kernels one for each accelerator.

    batch: rows at once; 0: any number, or with kernels 1.
    """
    with _whole(out) as directory:
        form: dict[str, Any] = {
            "format": "stablehlo",
            "kernels": "Pallas; the CUDA program is for the release of JAX named under versions" if kernels else "none",
            "platforms": {},
        }
        for one in programs:
            for file, exported in _export(one, kernels, batch).items():
                (directory / file).write_bytes(program.serialise(exported))
                form["platforms"][file] = list(exported.platforms)
            arguments = ", ".join(_shape(a) for a in exported.in_avals)
            given = exported.out_tree.unflatten(exported.out_avals)
            form[one.name] = f"{arguments} -> {', '.join(f'{name} {_shape(a)}' for name, a in given.items())}"
        card.write(dict(facts()), form, directory)
    return Path(out)


def _export(one: Program, kernels: bool, batch: int) -> dict[str, Any]:
    if not kernels:
        return {f"{one.name}.stablehlo": program.portable(one, batch)}
    return {f"{one.name}.{p}.stablehlo": program.with_kernels(one, p, batch or 1) for p in program.ACCELERATORS}


def _shape(a) -> str:
    return f"{a.dtype}[{', '.join(map(str, a.shape))}]"


@contextlib.contextmanager
def _whole(out: str) -> Iterator[Path]:
    """A directory beside `out` that takes its name once all is written. Raises UserError if `out` cannot be written."""
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"'{path}' exists already: give --out a new directory.")
    try:
        with whole(path) as beside:
            beside.mkdir()
            yield beside
    except OSError as error:
        raise UserError(f"cannot write '{path}': choose another place ({error.strerror}).") from None
