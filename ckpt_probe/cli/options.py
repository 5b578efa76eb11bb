"""Options that several subcommands share, and the parsing of their values."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ckpt_probe.cli.command import Function, Setting, explicit_options, flag, option, option_group
from ckpt_probe.errors import UsageError

PATH = click.Path(path_type=Path)
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


def split_names(_context: click.Context, _option: click.Parameter, texts: Sequence[str]) -> tuple[str, ...]:
    """Return the names in several texts, separated by commas."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


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


class WorkersOption(click.Option):
    """Option --workers: a number of processes (parameter `workers`), or an address (parameter `scheduler`)."""

    also = ("scheduler",)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the row of the help page, which names --workers alone."""
        return f"{self.opts[0]} {self.metavar}", str(self.help)

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the number of processes, 1 for an address, and set the parameter `scheduler`."""
        text = str(super().process_value(ctx, value))
        is_number = re.fullmatch(r"[+-]?\d+", text) is not None
        if is_number and int(text) < 1:
            raise click.BadParameter(f"expected at least 1, found {text}", ctx, self)
        ctx.params["scheduler"] = None if is_number else text
        return int(text) if is_number else 1


STATE_KEY = Setting("state_key", "A.B", "Key of the weights in a file that contains several models.")
BASE = Setting("base", "PATH", "Checkpoint of the base model of a PEFT adapter.", PATH)
CLASSIFIER = Setting("classifier", "NAME", "Last linear layer: NAME, NAME+NAME or none.", str, None, "automatic")
DATA_WORKERS = Setting("data_workers", "N", "Processes that read images.", WHOLE, None, "one per free CPU, at most 8")
CHECKPOINT_SETTINGS = (STATE_KEY, BASE)
MODEL_SETTINGS = (CLASSIFIER, STATE_KEY, BASE, DATA_WORKERS)
DTYPES = click.Choice(["float32", "float64", "float16", "bfloat16"])
DTYPE = Setting("dtype", "NAME", "Precision of written tensors, such as float16.", DTYPES, None, "unchanged")
MEMORY = Setting("memory", "SIZE", "Memory limit for moments and matrices of a dump.", SIZE, "2GiB")
ROWS_PER_TASK = Setting(
    "rows_per_task", "N", "Let workers share splits of more than N rows, N rows at a time.", POSITIVE
)
EVERY = Setting(
    "every", "SECONDS", "With --follow: time between two checks.", click.FloatRange(min=0, min_open=True), 5.0
)
CACHE = Setting("cache", "BOOL", "Read and write the cache of records.", bool, True)
BATCHNORM_SETTINGS = (
    Setting(
        "batchnorm",
        "HOW",
        "recompute the statistics, or interpolate them.",
        click.Choice(["recompute", "interpolate"]),
        "recompute",
    ),
    Setting("batchnorm_samples", "N", "Training samples for batchnorm=recompute.", click.IntRange(min=2), 4096),
)

FORWARD = "Model, data and device (model and data are those that the checkpoint names, if not set)"

DATA_ARGUMENT = option(
    "--data-argument data_arguments",
    "NAME=VALUE",
    "Argument of the data, or a JSON object of several; repeatable.",
    multiple=True,
    callback=parse_arguments,
)
model_options = option_group(
    FORWARD,
    option("--model", "NAME", "timm:NAME, torchvision:NAME, hf:DIR, a builtin, module:function."),
    option(
        "--model-argument model_arguments",
        "NAME=VALUE",
        "Argument of the model, or a JSON object of several; repeatable.",
        multiple=True,
        callback=parse_arguments,
    ),
    option(
        "--data",
        "NAME",
        "imagefolder:DIR, hf-dataset:DIR, csv:FILE, parquet:FILE, npz:FILE, h5:FILE, idx:DIR, text:FILE, a "
        "builtin, or path/file.py:function.",
    ),
    DATA_ARGUMENT,
)
SPLIT = option("--split splits", "NAME", "Split to use; repeatable.", str, None, "all", multiple=True)
DEVICE = option("--device", "NAME", "Device to run on: auto, cpu, cuda[:n] or mps.", str, "auto")
BATCH_SIZE = option("--batch-size", "N", "Samples per batch.", POSITIVE, 256)
WORKERS = option(
    "--workers --scheduler workers",
    "N|ADDRESS",
    "Processes, or a Dask cluster's address or file.",
    str,
    "1",
    cls=WorkersOption,
)
JSON = flag("--json", "Print JSON Lines, one record per line; missing values are null.")
CSV = flag("--csv", "Print comma-separated values with a header.")
WIDE = flag("--wide", "Show every column, however wide the terminal is.")


def subject_options(function: Function) -> Function:
    """Add the options of the forward pass: model and data, splits, batch size, device and workers."""
    return model_options(option_group(FORWARD, SPLIT, BATCH_SIZE, DEVICE, WORKERS)(function))


def overwrite_option(help_text: str) -> Callable[[Function], Function]:
    """Return the option --overwrite with a help text."""
    return flag("--overwrite", help_text)


def out_option(help_text: str, metavar: str = "FILE", *, required: bool = True) -> Callable[[Function], Function]:
    """Return the option --out with a help text."""
    return option("-o --out", metavar, help_text, PATH, required=required)


FILE_OF_RECORDS = (
    out_option("Also write to this file: .csv, .parquet, else JSON Lines.", required=False),
    overwrite_option("Replace the file if it exists."),
)


def metric_option(help_text: str, default: Any = None, default_text: str = "") -> Callable[[Function], Function]:
    """Return the option --metric for names separated by commas, with a help text; it is repeatable."""
    return option(
        "--metric metrics", "NAME,…", help_text, str, default, default_text, multiple=True, callback=split_names
    )


def require_batchnorm_samples(batchnorm: str) -> None:
    """Raise UsageError if `batchnorm_samples` is set although no statistics are recomputed."""
    if batchnorm != "recompute" and "batchnorm_samples" in explicit_options():
        raise UsageError("--set batchnorm_samples=N needs --set batchnorm=recompute")


def require_follow(follow: bool, *names: str) -> None:
    """Raise UsageError if a setting of --follow is set without it."""
    unused = [spelling for name, spelling in explicit_options().items() if name in names]
    if unused and not follow:
        raise UsageError(f"{unused[0]} needs --follow")
