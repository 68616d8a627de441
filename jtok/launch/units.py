"""Units of an experiment: a name, what it changes in the config, the directory it works in, and the command it runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jtok.errors import UserError
from jtok.launch.unit import read_done


@dataclasses.dataclass(frozen=True)
class Unit:
    """One run of an experiment.

    words: a module and its arguments, as they follow `python -m`.
    output: the file of `workdir` that takes what it prints; "" to leave that in the log.
    """

    name: str
    workdir: str
    words: tuple[str, ...]
    output: str = ""

    def arguments(self) -> list[str]:
        """The arguments of `python`: the module run by `jtok.launch.unit`, which records what came of it."""
        output = [f"--output={self.output}"] if self.output else []
        return ["-m", "jtok.launch.unit", self.workdir, *output, "--", *self.words]

    def done(self) -> bool:
        """Whether it is done, by the same command. Raises UserError if it is, by another."""
        record = read_done(self.workdir)
        if record and tuple(record["command"]) != self.words:
            raise UserError(
                f"{self.workdir} holds what another command made ({' '.join(record['command'])}): "
                "choose another --workdir, or remove it."
            )
        return record is not None


def make_units(
    sweep: Iterable[tuple[str, Mapping[str, Any]]],
    command: Sequence[str],
    config: str,
    root: str,
    *,
    output: str = "",
    extra: Sequence[str] = (),
) -> list[Unit]:
    """The units of a sweep, each in a directory of `root` called like it.

    sweep: (name, {field of the config: value}); `extra`: flags that all units get, after their own.
    Raises UserError for a name that is no plain file name or comes twice, values that no flag can give, and no units.
    """
    units, names = [], set()
    for name, overrides in sweep:
        if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.=+-]*", name):
            raise UserError(f"a unit is called {name!r}: use letters, digits and _ . = + - only.")
        if name in names:
            raise UserError(f"two units are called '{name}': give each a different name.")
        names.add(name)
        workdir = f"{root}/{name}"
        flags = [f"--config={config}", *override_flags(overrides), *extra]
        flags += [] if output else [f"--workdir={workdir}"]
        units.append(Unit(name, workdir, (*command, *flags), output))
    if not units:
        raise UserError("the sweep has no units: sweep() should yield (name, overrides).")
    return units


def override_flags(overrides: Mapping[str, Any], prefix: str = "--config.") -> list[str]:
    """{"train.lr": 1e-3, "sweep": {"methods": ("tome",)}} as flags; a group in a group becomes a dotted name.

    A name that begins with -- is a flag of the command itself.
    """
    flags = []
    for name, value in overrides.items():
        flag = name if name.startswith("--") else prefix + name
        if isinstance(value, Mapping):
            flags += override_flags(value, f"{flag}.")
            continue
        if not isinstance(value, (bool, int, float, str, tuple)):
            raise UserError(f"{flag} is set to {value!r}: a flag takes numbers, texts, booleans and tuples.")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        flags.append(f"{flag}={text}")
    return flags


def check_flags(units: Sequence[Unit]) -> None:
    """Parses the flags of units that run a jtok command as it will: a wrong field or value is found before any starts.

    Raises UserError as the command would.
    """
    import importlib

    from jtok.cli import FILES
    from jtok.flags import parse

    for unit in units:
        if unit.words[0] != "jtok":
            continue
        words = unit.words[1:]
        flags = [word for word in words if word.startswith("-")]
        file = "_".join(word for word in words if not word.startswith("-"))
        if file not in FILES:
            raise UserError(f"unit '{unit.name}' runs jtok {file.replace('_', ' ')}, which is no command of jtok.")
        try:
            parse(flags, importlib.import_module(f"jtok.commands.{file}_").COMMAND)
        except UserError as error:
            raise UserError(f"unit '{unit.name}': {error}") from None


def finished(units: Iterable[Unit]) -> dict[str, Path]:
    """Directories of the units that are done, by name."""
    return {unit.name: Path(unit.workdir) for unit in units if unit.done()}
