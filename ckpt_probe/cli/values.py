"""Values of options: their types, and the functions that parse their texts."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
FILE, DIRECTORY = click.Path(path_type=Path, dir_okay=False), click.Path(path_type=Path, file_okay=False)
WHOLE, POSITIVE = click.IntRange(min=0), click.IntRange(min=1)


class Parsed(click.ParamType):
    """Type of an option whose text a function parses; the function raises ValueError for other texts."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a text; return any other value as it is."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the name that stands for the value in a help page."""
        return self.name


def byte_count(text: str) -> int:
    """Parse a size such as "2GiB", "512 MiB", "1.5GB" or "1000000" into bytes.

    Raises:
        ValueError: If the text is not a size, or the size is below one byte.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?\s*", text, flags=re.IGNORECASE)
    size = 0
    if match:
        number, prefix, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))
    if size < 1:
        raise ValueError(f"expected a size such as 2GiB or 512MiB, found {text!r}")
    return size


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas, such as "0.5,2"; raise ValueError if one is not a finite number."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.inf,)
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected numbers such as 0.5,2, found {text!r}")
    return values


def entropy_orders(text: str) -> tuple[float, ...]:
    """Parse Rényi orders such as "0.5,2"; raise ValueError if one is not positive."""
    orders = numbers(text)
    if not all(order > 0 for order in orders):
        raise ValueError(f"expected positive numbers such as 0.5,2, found {text!r}")
    return tuple(dict.fromkeys(orders))


def parse_points(text: str) -> int | None:
    """Parse a number of positions on a path; "auto" gives None. Raise ValueError for other texts."""
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < 3:
        raise ValueError(f'expected "auto" or a number of at least 3, found {text!r}')
    return int(text)


def parse_span(text: str) -> tuple[float, float]:
    """Parse two increasing numbers such as "-0.5:1.5"; raise ValueError for other texts."""
    limits = numbers(text.replace(":", ",")) if text.count(":") == 1 else ()
    if len(limits) != 2 or limits[0] >= limits[1]:
        raise ValueError(f"expected two increasing numbers such as -0.5:1.5, found {text!r}")
    return limits[0], limits[1]


SIZE = Parsed("SIZE", byte_count)
NUMBERS = Parsed("N,…", numbers)
ORDERS = Parsed("N,…", entropy_orders)
POINTS = Parsed("N|auto", parse_points)
SPAN = Parsed("LOW:HIGH", parse_span)


def parse_arguments(_context: click.Context, _option: click.Parameter, texts: Sequence[str]) -> dict[str, Any] | None:
    """Parse arguments of a model or of data, each NAME=VALUE or a JSON object; None without any.

    Raises:
        click.BadParameter: If one is neither, or a name occurs twice.
    """
    values: dict[str, Any] = {}
    for text in texts:
        new = _json_object(text) if text.lstrip().startswith("{") else _named_value(text)
        twice = next((name for name in new if name in values), None)
        if twice is not None:
            raise click.BadParameter(f"{text}: {twice} occurs twice")
        values |= new
    return values if texts else None


def _named_value(text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{text}: expected NAME=VALUE such as width=64, or a JSON object")
    return {name: parse_value(value)}


def _json_object(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not valid JSON: {error}") from error


def parse_value(text: str) -> Any:
    """Return the value of a text as JSON or TOML (64, 1e-3, true, [1, 2], {a = 1}), else the text itself."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        pass
    import tomllib

    try:
        document = tomllib.loads(f"value = {text}")
        json.dumps(document, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text


def _refuse_constant(text: str) -> Any:
    raise ValueError(text)
