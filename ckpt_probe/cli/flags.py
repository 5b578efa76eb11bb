"""Parameters as the command line spells them: values of options, names of flags, and messages with both."""

import ast
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ckpt_probe.errors import UsageError

PATH = click.Path(path_type=Path)
FILE, DIRECTORY = click.Path(path_type=Path, dir_okay=False), click.Path(path_type=Path, file_okay=False)
WHOLE, POSITIVE = click.IntRange(min=0), click.IntRange(min=1)

AGAIN = re.compile(r"\b(extract|train) (?:(?:it |them )?again )?with ")
"""Advice to run another command, whose flags the keywords after it become."""

KEYWORD = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")
"""A keyword in a message: `overwrite`, `data=` or `batch_size=0`, in backquotes."""

REPLACED = {
    "--model-arguments": "use --model-argument, which also takes a JSON object",
    "--data-arguments": "use --data-argument, which also takes a JSON object",
    "--weights-only": "use the command ckpt-probe weights CHECKPOINTS",
    "--consecutive": "use the command ckpt-probe barriers RUN",
    "--resume": "repeat the same command, which continues, or prints the finished results",
    "--range": "use --set span=LOW:HIGH",
    "--interval": "use --sampling method=t or method=bootstrap",
    "--parquet": "use -o with a file name that ends in .parquet",
    "--format": "use --set figure_format=pdf",
    "analyze --alpha": "use --renyi for the orders of entropies",
    "train --seed": "use --set seed=N",
    "--log-x": "use --log x",
    "--log-y": "use --log y",
    "--no-layers": "use --set layers=false",
    "--threads": "the number of writer threads is chosen automatically",
}
"""Removed options, of all commands or of one, and what to use instead.

Options that have become a key of --set or --sampling are found there.
"""


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
        name, equals, value = text.partition("=")
        if text.lstrip().startswith("{"):
            try:
                new = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise click.BadParameter(f"not valid JSON: {error}") from error
        elif name and equals:
            new = {name: parse_value(value)}
        else:
            raise click.BadParameter(f"{text}: expected NAME=VALUE such as width=64, or a JSON object")
        if twice := new.keys() & values:
            raise click.BadParameter(f"{text}: {min(twice)} occurs twice")
        values |= new
    return values if texts else None


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


def parameters_of(command: click.Command) -> dict[str, tuple[click.Parameter, str]]:
    """Return the parameters of a command by their Python keyword, with their spelling on the command line."""
    spelled: dict[str, tuple[click.Parameter, str]] = {}
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            spelled[str(parameter.name)] = parameter, (parameter.metavar or str(parameter.name).upper())
            continue
        flag = next((name for name in parameter.opts if name.startswith("--")), parameter.opts[0])
        settings = getattr(parameter, "settings", None)
        if settings is not None:
            # A key of --set is also an option of its own.
            words = {name: max(setting.opts, key=len) for name, setting in settings.items()}
            spelled |= {n: (settings[n], word if flag == "--set" else f"{flag} {n}") for n, word in words.items()}
            continue
        for name in (parameter.name, *getattr(parameter, "also", ())):
            spelled[str(name)] = parameter, flag
    return spelled


def new_name_of(option: str, command: click.Command) -> str | None:
    """Return what to use in place of an option that the command no longer has; None if it never had it."""
    name = option.lstrip("-").replace("-", "_")
    spelling = parameters_of(command).get(name, (None, ""))[1]
    if " " in spelling:
        return f"use {spelling}=VALUE"
    return REPLACED.get(f"{command.name} {option}", REPLACED.get(option))


def nearest_option(text: str, command: click.Command) -> str:
    """Return "did you mean --batch-size?" with the option or key nearest to a text; "" if none is near."""
    spelled = parameters_of(command)
    names = spelled | {spelling.lstrip("-").replace("-", "_"): (None, spelling) for _, spelling in spelled.values()}
    near = get_close_matches(text.strip().lstrip("-").replace("-", "_"), names, n=1)
    return f"did you mean {names[near[0]][1]}?" if near else ""


def explicit_options() -> dict[str, str]:
    """Return what the command line sets: names of parameters, and how the command line spells them."""
    context = click.get_current_context()
    default = (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return {
        name: spelling
        for name, (_, spelling) in parameters_of(context.command).items()
        if spelling.startswith("-") and context.get_parameter_source(name) not in default
    }


def require_used(used: bool, needed: str, *names: str) -> None:
    """Raise UsageError if the command line sets one of some parameters although they have no effect.

    Args:
        used: Whether they have an effect.
        needed: The option that they need, for the message.
        names: Names of the parameters.
    """
    unused = [spelling for name, spelling in explicit_options().items() if name in names]
    if unused and not used:
        raise UsageError(f"{unused[0]} needs {needed}")


def flags_for_keywords(message: str, command: click.Command | None = None) -> str:
    """Rewrite the Python keywords in a message as flags: `batch_size=0` becomes --batch-size 0.

    Functions below `cli/` name a parameter by its Python keyword in backquotes, as `overwrite`, `data=` or
    `batch_size=0`. A keyword that the command has no parameter for stays as it is.

    Args:
        message: Message for the user.
        command: Command whose parameters to name; None for the running one.
    """
    if command is None:
        context = click.get_current_context(silent=True)
        command = None if context is None else context.command
    if command is None or "`" not in message:
        return message
    running = parameters_of(command)

    def replace(match: re.Match[str]) -> str:
        name, value = match.groups()
        advised = AGAIN.search(message, 0, match.start())
        parameters = parameters_of(import_module(f"ckpt_probe.cli.{advised[1]}").command) if advised else running
        return (name in parameters and _words(*parameters[name], value)) or match[0]

    return KEYWORD.sub(replace, message)


def _words(parameter: click.Parameter, spelling: str, text: str | None) -> str | None:
    """Return a parameter with its value as on the command line; None if it cannot have that value there."""
    if not text:
        return spelling
    if not isinstance(parameter, click.Option):
        return None
    value = _value(text)
    if " " not in spelling and (parameter.is_flag or isinstance(parameter.type, click.types.BoolParamType)):
        negative = f"--no-{spelling[2:]}" if not parameter.is_flag else next(iter(parameter.secondary_opts), None)
        return {True: spelling, False: negative}.get(value)
    if value is None:
        return None
    joint = "=" if " " in spelling else " "
    return " ".join(f"{spelling}{joint}{word}" for word in _texts(value, separate=parameter.multiple))


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text.strip("\"'")


def _texts(value: Any, *, separate: bool) -> list[str]:
    if isinstance(value, bool):
        return [str(value).lower()]
    if isinstance(value, Mapping):
        return [shlex.quote(f"{name}={_text_or_json(inner)}") for name, inner in value.items()]
    if isinstance(value, list | tuple):
        return [str(inner) for inner in value] if separate else [",".join(map(str, value))]
    return [str(value)]


def _text_or_json(value: Any) -> str:
    """Return a value as an option NAME=VALUE takes it: plain text, or JSON for other values."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value, ensure_ascii=False)
