"""Reading a config file: a Python file with `get_config()` or `get_config(argument)` that returns a ConfigDict."""

import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from jtok.errors import UserError


def load_config(target: str) -> ConfigDict:
    """Runs the config file named by `target`, "FILE.py" or "FILE.py:ARGUMENT".

    Raises:
      UserError: no such file, an error raised inside it (named with its line), no `get_config` or one that does not
        fit the argument, or a result that is not a ConfigDict.
    """
    path, colon, argument = target.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"there is no config file {path}: give the path of a Python file with get_config")
    if not path.endswith(".py"):
        raise UserError(f"config file {path} is not a Python file: its name should end in .py")
    module = _guarded(path, lambda: _import(path))
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"config file {path} has no function get_config")
    arguments = (argument,) if colon else ()
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        fault = f"takes no argument: write --config={path}" if colon else f"needs one: write --config={path}:ARGUMENT"
        raise UserError(f"get_config in {path} {fault}") from None
    config = _guarded(path, lambda: get_config(*arguments))
    if not isinstance(config, ConfigDict):
        raise UserError(f"get_config in {path} returned {type(config).__name__}, not an ml_collections ConfigDict")
    return config


def _import(path: str) -> ModuleType:
    name = "jtok_config_" + os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look their module up
    spec.loader.exec_module(module)
    return module


def _guarded(path: str, run: Callable[[], Any]) -> Any:
    """Calls `run`; what the file raises becomes a sentence that names its line, but a UserError stands as it is."""
    try:
        return run()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"config file {error.filename}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(path)]
        where = f", line {lines[-1]}" if lines else ""
        raise UserError(f"config file {path}{where}: {type(error).__name__}: {error}") from None
