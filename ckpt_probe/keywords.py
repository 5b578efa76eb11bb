"""Check the names that callers pass to public functions, and suggest the nearest known ones."""

import inspect
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache, wraps
from os import PathLike
from typing import Any, TypeVar

from ckpt_probe.errors import UsageError, listed

Kind = TypeVar("Kind")


def checked_keywords(value: Any, module: str) -> Any:
    """Make a public name raise a UsageError with the nearest name for an unknown keyword, in place of a TypeError.

    Only what users call is checked, since the package itself calls the functions without this layer.

    Args:
        value: Function, which is wrapped; or class or module, whose methods or functions are replaced by wrapped ones.
        module: Name of the module that has the value as an attribute; a function is pickled by it.

    Returns:
        The wrapped function, or the class or module itself.
    """
    public = _with_check(value, module) if inspect.isfunction(value) else value
    for name in getattr(value, "__all__", list(vars(value))):
        member = vars(value)[name]
        if inspect.isfunction(member) and (name == "__init__" or not name.startswith(("_", "on_"))):
            # A function of a public module is pickled by that module.
            home = member.__module__ if member.__module__ == value.__name__ else module
            setattr(public, name, _with_check(member, home))
    return public


@cache
def _with_check(function: Callable[..., Any], module: str) -> Callable[..., Any]:
    """Return a function that refuses unknown keywords and then calls the given one."""
    known = tuple(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*args: Any, **keywords: Any) -> Any:
        unknown = [name for name in keywords if name not in known]
        if unknown:
            public_name = function.__qualname__.removesuffix(".__init__")
            raise UsageError(f"{public_name}: unknown keyword `{unknown[0]}`{suggestion(unknown[0], known)}")
        return function(*args, **keywords)

    checked.__module__ = module
    return checked


def require_known(kind: str, arguments: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise UsageError for the first of some arguments that a kind of data does not take; the message lists those."""
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]}; {kind} takes {listed(sorted(known), len(known))}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean a, b or c?" with the at most three known names nearest to a name, ignoring case.

    Args:
        name: Unknown name.
        known: Names to choose from.

    Returns:
        Text for the end of a message, or "" if no name is near.
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    wanted = name.lower()
    near = get_close_matches(wanted, by_lower_case, n=3, cutoff=0.5)
    near += [candidate for candidate in by_lower_case if wanted and wanted in candidate and candidate not in near]
    names = [by_lower_case[candidate] for candidate in near[:3]]
    if not names:
        return ""
    *first, last = names
    return f"; did you mean {', '.join(first)} or {last}?" if first else f"; did you mean {last}?"


def matching(wanted: str, names: Iterable[str], labels: Mapping[str, str] | None = None) -> list[str]:
    """Return the names that a name, a label or a pattern such as "class.*" refers to, ignoring case.

    Args:
        wanted: Name, label or pattern.
        names: Names to choose from.
        labels: Names by their short labels, for a text that is no name.
    """
    text, names = wanted.strip().lower(), list(names)
    if wanted in names:
        return [wanted]  # also a name with the characters of patterns, and one of two that differ in case
    if set(text) & set("*?["):
        return [name for name in names if fnmatchcase(name.lower(), text)]
    exact = [name for name in names if name.lower() == text]
    return exact or [name for label, name in (labels or {}).items() if label.lower() == text and name in names]


def as_sequence(values: Any) -> tuple[Any, ...] | None:
    """Return a sequence as a tuple: a single string, path or number is a sequence of one; None stays None.

    A data frame of pandas is the sequence of its rows as dictionaries, with None for missing values.
    """
    if values is None:
        return None
    if hasattr(values, "iterrows"):
        return tuple(values.astype(object).where(values.notna(), None).to_dict("records"))
    return (values,) if isinstance(values, str) or not isinstance(values, Iterable) else tuple(values)


def as_paths(sources: Any) -> tuple[Any, ...]:
    """Return one path or several as a tuple; raise UsageError for another object, such as a record."""
    paths = (sources,) if hasattr(sources, "iterrows") else as_sequence(sources) or ()
    for path in paths:
        if not isinstance(path, str | PathLike):
            kind = f"{type(path).__module__}.{type(path).__name__}".removeprefix("builtins.")
            raise UsageError(f"expected the path of a file or a directory, found an object of type {kind}")
    return paths


def whole_number(name: str, value: Any, least: int | None = None) -> int:
    """Return the value of a keyword as an `int`; raise UsageError for other values and below `least`.

    Args:
        name: Name of the keyword.
        value: An integer of any kind, such as one of numpy.
        least: Smallest value.
    """
    number = _as_integer(value)
    if number is None:
        raise UsageError(f"`{name}={value!r}`: expected a whole number")
    if least is not None and number < least:
        raise UsageError(f"`{name}={number}`: expected at least {least:,}")
    return number


def whole_argument(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return the value of an argument of data as an `int`; raise UsageError for other values and beyond bounds."""
    number = None if isinstance(value, bool) else _as_integer(value)
    if number is None or number < least or (most is not None and number > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name}: expected a whole number {bounds}, found {value!r}")
    return number


def _as_integer(value: Any) -> int | None:
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):
        return None


def from_arguments(kind: type[Kind], arguments: Mapping[str, Any]) -> Kind:
    """Create a dataclass from those arguments of a function that are named like its fields.

    Args:
        kind: Dataclass.
        arguments: The function's `locals()`.
    """
    names = [field.name for field in fields(kind) if field.name in arguments]  # pyright: ignore[reportArgumentType]
    return kind(**{name: arguments[name] for name in names})
