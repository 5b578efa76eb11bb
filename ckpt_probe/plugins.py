"""Anybody's own function by name: `package.module:function` or an installed entry point."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ckpt_probe.errors import UsageError


def is_function_name(name: str) -> bool:
    """Whether `name` has the form `package.module:function` (and is not, say, `idx:DIR`)."""
    module, _, function = name.partition(":")
    return function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def require_named(functions: Sequence[str], by_caller: str | None, file: Path, option: str) -> None:
    """Raise UsageError where a file, but not the caller, names one of these functions to be called.

    A file can name any function of any module, so that calling one on its word would run whatever it likes.
    """
    for name in functions:
        if name != by_caller:
            raise UsageError(
                f"{file}: names {name}, a function that is not called on a file's word; if you trust it, name it "
                f"yourself: {option}"
            )


def functions_within(arguments: Any) -> list[str]:
    """Each `package.module:function` in arguments, however deep: the function that is given them may call it."""
    if isinstance(arguments, str):
        return [arguments] if is_function_name(arguments) else []
    if isinstance(arguments, Mapping):
        return functions_within([*arguments.keys(), *arguments.values()])
    if isinstance(arguments, list | tuple):
        return [name for part in arguments for name in functions_within(part)]
    return []


def load_function(name: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules in the working directory are found too.

    Raises `UsageError` where the module cannot be imported or has no such function.
    """
    module_name, _, function_name = name.partition(":")
    if not is_function_name(name):
        raise UsageError(f"{name!r}: not of the form package.module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(f"{name}: cannot import {module_name}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"{name}: {module_name} has no function {function_name}")
    return function


def registered(group: str) -> dict[str, Callable[..., Any]]:
    """Functions that installed packages register under `group` (`ckpt_probe.models`, `.data`, `.metrics`)."""
    return {point.name: point.load() for point in entry_points(group=group)}
