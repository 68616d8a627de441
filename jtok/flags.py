"""The one parser of flags and configs, used by every command.

A command declares absl flags on a `FlagValues` of its own, and may take an `ml_collections` config:

    jtok train --config=configs/digits.py:tiny --config.optimizer.lr=1e-3 --workdir=runs/first

Whatever is wrong on the command line or in the config file ends as one sentence on stderr and exit code 2.
"""

import ast
import dataclasses
import difflib
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Literal

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from jtok.config_file import load_config
from jtok.errors import UserError
from jtok.version import __version__

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE

HELP_FLAGS = ("--help", "-help", "-h")


@dataclasses.dataclass(frozen=True)
class Command:
    """One subcommand.

    Attributes:
      name: the word typed after `jtok`.
      help: first line for the list of commands; the rest is shown by `jtok NAME --help`.
      flags: defines the command's flags on the `FlagValues` it is given (`flag_values=` of the absl functions).
      run: does the work with the parsed flags (attributes named after the flags) and the locked config, or None where
        no config was given; its int is the exit code.
      config: whether `--config` is refused (None), allowed or demanded.
      argument: name of the one argument that may be given without a flag's name; it is None in `run` if it was not.
    """

    name: str
    help: str
    flags: Callable[[absl_flags.FlagValues], None]
    run: Callable[[SimpleNamespace, ConfigDict | None], int]
    config: Literal["optional", "required"] | None = None
    argument: str | None = None


def main(commands: Sequence[Command], argv: Sequence[str], program: str = "jtok") -> int:
    """Runs the command that `argv` (without the program's name) asks for and returns the exit code.

    Returns:
      What the command returned; 2 after a `UserError`, whose one sentence then stands on stderr; 130 when interrupted.
    """
    by_name = {command.name: command for command in commands}
    word = argv[0] if argv else None
    if word in (*HELP_FLAGS, "help"):
        print(commands_help(commands, program))
        return 0
    if word == "--version":
        print(f"{program} {__version__}")
        return 0
    label = f"{program} {word}" if word in by_name else program
    try:
        if word not in by_name:
            raise UserError(_no_such_command(word, list(by_name), program))
        code = _run(by_name[word], argv[1:], label)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{label}: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"{label}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`head`, say) has left: point stdout elsewhere, or the flush at exit complains once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _run(command: Command, argv: Sequence[str], label: str) -> int:
    if any(arg in HELP_FLAGS for arg in argv):
        print(command_help(command, label))
        return 0
    return command.run(*parse(argv, command))


def parse(argv: Sequence[str], command: Command) -> tuple[SimpleNamespace, ConfigDict | None]:
    """Parses what stands after the command's name.

    Returns:
      The flags as attributes, and the config with its overrides applied (locked), or None without `--config`.

    Raises:
      UserError: unknown flag or config field, value of the wrong type, missing value, flag or file, or an error inside
        the config file.
    """
    values = absl_flags.FlagValues()
    command.flags(values)
    values.set_gnu_getopt(True)
    names = list(values)
    try:
        argv = values.read_flags_from_files(list(argv), force_gnu=False)
        config = None
        if command.config:
            config, argv = _config(argv, values, required=command.config == "required")
        rest = values([command.name, *argv])[1:]
    except absl_flags.UnrecognizedFlagError as error:
        known = [*names, *(["config"] if command.config else [])]
        hint = nearest(error.flagname, known) or f"; see jtok {command.name} --help"
        raise UserError(f"unknown flag --{error.flagname}{hint}") from None
    except absl_flags.IllegalFlagValueError as error:
        raise UserError(_illegal_value(str(error), values)) from None
    except absl_flags.CantOpenFlagFileError as error:
        raise UserError(f"cannot read the file named by --flagfile: {str(error).removeprefix('ERROR:: ')}") from None
    except absl_flags.Error as error:
        raise UserError(_lower_first(str(error))) from None
    except (ValueError, TypeError) as error:  # `--noflag=value`; a value that the config itself refuses
        raise UserError(_lower_first(str(error))) from None
    given = SimpleNamespace(**{name: values[name].value for name in names})
    if command.argument:
        setattr(given, command.argument, rest.pop(0) if rest else None)
        if rest:
            raise UserError(f"the {command.argument} is followed by {rest[0]!r}: put it in quotes, as one argument")
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}: values are given as --flag=value")
    return given, config


def nearest(word: str, known: Iterable[str], prefix: str = "--") -> str:
    """Says which known names come near `word`: "; did you mean --steps or --step_size?", or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(prefix + match for match in matches)}?" if matches else ""


def _config(argv: list[str], values: absl_flags.FlagValues, required: bool) -> tuple[ConfigDict | None, list[str]]:
    """Takes `--config` out of `argv`, loads the file, and declares a flag for every field that is overridden.

    The file is loaded here, not by `DEFINE_config_file`, which hides an error raised inside the file until the config
    is first read. The overrides are the library's: it types each after the field, given `sys_argv` explicitly, for by
    itself it would look at `sys.argv` alone.
    """
    target, rest = _take_config(argv)
    overrides = [match[1] for arg in rest if (match := re.match(r"--?(?:no)?config\.([^=]*)", arg))]
    if target is None:
        if overrides:
            raise UserError(f"--config.{overrides[0]} needs a config to change: add --config=FILE.py")
        if required:
            raise UserError("--config is missing: add --config=FILE.py")
        return None, rest
    config = load_config(target)
    _add_options(config, rest)
    fields = _fields(config)
    for override in overrides:
        _check_field(override, fields, target)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=rest)
        for override in overrides:
            if fields.get(override) is tuple:
                _demand_entries_like(values[f"config.{override}"].default, override, values)
    except LookupError as error:  # an index past the end of a list
        raise UserError(f"cannot set --config.{' or --config.'.join(overrides)}: {error}") from None
    return config, rest


def _add_options(config: ConfigDict, argv: list[str]) -> None:
    """Adds fields that only the command line names to groups called `options`: what they may hold depends on what they
    are the options of (a method, a data set), which checks their names itself."""
    for arg in argv:
        match = re.fullmatch(r"--?config\.((?:\w+\.)*options)\.(\w+)=(.*)", arg, re.DOTALL)
        group = config
        for name in match[1].split(".") if match else ():
            group = group.get(name) if isinstance(group, ConfigDict) else None
        if match and isinstance(group, ConfigDict) and match[2] not in group:
            try:
                value = ast.literal_eval(match[3])
            except (ValueError, SyntaxError):
                value = match[3]
            with group.unlocked():
                group[match[2]] = value


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """Splits `argv` into the value of `--config` and all the rest."""
    target, rest, args = None, [], iter(argv)
    for arg in args:
        if arg == "--":
            return target, [*rest, arg, *args]
        name, equals, value = arg.partition("=")
        if name not in ("--config", "-config"):
            rest.append(arg)
            continue
        if target is not None:
            raise UserError("--config is given twice: give it once, and change single fields by --config.field=value")
        target = value if equals else next(args, "")
        if not target or target.startswith("-"):
            raise UserError("--config needs a value: --config=FILE.py or --config=FILE.py:ARGUMENT")
    return target, rest


def _fields(config: ConfigDict, prefix: str = "") -> dict[str, type]:
    """All dotted paths of a config, inner nodes included, with the types of their values."""
    fields = {}
    for name, value in config.items():
        fields[prefix + name] = config.get_type(name)
        if isinstance(value, ConfigDict):
            fields.update(_fields(value, f"{prefix}{name}."))
    return fields


def _check_field(override: str, fields: dict[str, type], target: str) -> None:
    """Refuses a field that the config lacks, or whose type no flag can give."""
    path, bracket, _ = override.partition("[")  # `field[0]` sets one entry of a list
    if path not in fields:
        last = path.rpartition(".")[2]
        elsewhere = [field for field in fields if field.rpartition(".")[2] == last]
        hint = f"; did you mean {' or '.join('--config.' + field for field in elsewhere[:3])}?" if elsewhere else ""
        hint = hint or nearest(path, fields, prefix="--config.")
        raise UserError(f"unknown config field --config.{path} (not in {target}){hint}")
    kind = fields[path]
    if bracket and kind is not list:
        raise UserError(f"--config.{path} is no list in {target}, so it is set as a whole: --config.{path}=VALUE")
    if kind is list and not re.fullmatch(r"[\w.]+\[\d+\]", override):
        raise UserError(f"--config.{path} is a list in {target}: set one entry, --config.{path}[0]=VALUE")
    if kind is type(None):
        raise UserError(f"--config.{path} has no type in {target}: declare it there by config_dict.placeholder(TYPE)")
    if issubclass(kind, ConfigDict):  # replacing the whole group could lose or invent fields
        raise UserError(f"--config.{path} is a group of fields in {target}: set one, --config.{path}.FIELD=VALUE")


def _demand_entries_like(old: Iterable, path: str, values: absl_flags.FlagValues) -> None:
    """Makes a tuple keep the type of its entries: the library takes "a" for a tuple of numbers, as ("a",)."""
    old = tuple(old)
    allowed = {type(entry) for entry in old} - {type(None)}
    allowed |= {int} if float in allowed else set()
    absl_flags.register_validator(
        f"config.{path}",
        lambda new: not allowed or all(type(entry) in allowed for entry in new),
        message=f"should be a tuple like {old}",
        flag_values=values,
    )


def _illegal_value(message: str, values: absl_flags.FlagValues) -> str:
    """Rewrites absl's "flag --NAME=VALUE: reason" with what the flag expects."""
    match = re.match(r"flag --([^=]+)=(.*?): (.*)", message, re.DOTALL)
    if not match:
        return _lower_first(message)
    name, value, reason = match.groups()
    flag = values[name] if name in values else None
    if flag is None:
        return f"--{name}={value}: {_lower_first(reason)}"
    if flag.value is None and value == "None":
        return f"--{name} is missing ({_lower_first(flag.help.rstrip('.'))}): add --{name}=VALUE"
    if flag.boolean:
        return f"--{name}={value} should be true or false"
    if flag.parser.syntactic_help:
        return f"--{name}={value} should be {flag.parser.syntactic_help}"
    return f"--{name}={value}: {_lower_first(reason)}"


def _no_such_command(word: str | None, names: list[str], program: str) -> str:
    if word is None:
        return f"no command given: choose one of {', '.join(names)} (see {program} --help)"
    if word.startswith("-"):
        return f"a command comes first, before {word}: one of {', '.join(names)}"
    return f"unknown command {word}" + (nearest(word, names, prefix="") or f": choose one of {', '.join(names)}")


def commands_help(commands: Sequence[Command], program: str = "jtok") -> str:
    """The text of `jtok --help`: one line a command."""
    width = max(len(command.name) for command in commands)
    lines = [f"  {command.name:<{width}}  {command.help.splitlines()[0]}" for command in commands]
    usage = f"usage: {program} COMMAND [--flag=value ...]"
    return "\n".join([usage, "", "commands:", *lines, "", f"{program} COMMAND --help explains a command."])


def command_help(command: Command, label: str) -> str:
    """The text of `jtok NAME --help`: what the command does, and each flag with its type and default."""
    values = absl_flags.FlagValues()
    command.flags(values)
    argument = f' "{command.argument.upper()}"' if command.argument else ""
    lines = [f"usage: {label} [--flag=value ...]{argument}", "", command.help.strip(), "", "flags:"]
    if command.config:
        text = f"{command.config}; a Python file with get_config; change its fields by --config.field=value"
        lines += _flag_help("--config=FILE.py[:ARGUMENT]", text)
    for name in sorted(values):
        flag = values[name]
        if name == flag.short_name:
            continue
        default = "" if flag.default is None else f" (default: {flag.default_as_str.strip(chr(39))})"
        head = f"--[no]{name}" if flag.boolean else f"--{name}=<{flag.flag_type()}>"
        lines += _flag_help(head, flag.help + default)
    return "\n".join(lines)


def _flag_help(head: str, text: str) -> list[str]:
    return [f"  {head}", *textwrap.wrap(" ".join(text.split()), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)]


def _lower_first(text: str) -> str:
    """Lets absl's sentences stand after a colon, without lowering a name in capitals."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _one_line(error: UserError) -> str:
    return " ".join(str(error).split())
