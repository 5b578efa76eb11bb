"""Options that several subcommands share, and the parsing of their values."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ckpt_probe.errors import UsageError

_SOURCE = (
    click.option(
        "--state-key",
        metavar="A.B",
        help="Key of the weights in a checkpoint, or the first part of their names, if it contains several models.",
    ),
    click.option(
        "--base",
        type=click.Path(path_type=Path),
        help="Checkpoint of the base model of a PEFT adapter.",
    ),
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe how to read a checkpoint."""
    for option in reversed(_SOURCE):
        command = option(command)
    return command


_MODEL = (
    click.option(
        "--model",
        help="Model to use instead of the one in the checkpoint: timm:NAME, torchvision:NAME, hf:DIR, a builtin name, "
        "package.module:function or path/to/file.py:function.",
    ),
    click.option(
        "--model-argument",
        metavar="NAME=VALUE",
        multiple=True,
        help="Argument of the model; repeatable.",
    ),
    click.option("--model-arguments", metavar="JSON", help="Arguments of the model, as a JSON object."),
    click.option(
        "--classifier",
        metavar="NAME",
        help='Name of the last linear layer (or layers, joined by "+"), if it cannot be found automatically; "none" '
        "for a model without one.",
    ),
)
_DATA = (
    click.option(
        "--data",
        help="Data to use instead of those in the checkpoint: text:FILE, imagefolder:DIR, hf-dataset:DIR, csv:FILE, "
        "parquet:FILE, npz:FILE, h5:FILE, idx:DIR, digits, "
        "package.module:function or path/to/file.py:function.",
    ),
    click.option("--data-argument", metavar="NAME=VALUE", multiple=True, help="Argument of the data; repeatable."),
    click.option("--data-arguments", metavar="JSON", help="Arguments of the data, as a JSON object."),
    click.option(
        "--data-workers",
        type=click.IntRange(min=0),
        show_default="one per free processor, at most 8",
        help="Number of processes that read images; does not change the results.",
    ),
)
_SUBJECT = (
    *_SOURCE,
    *_MODEL,
    *_DATA,
    click.option("--split", "splits", multiple=True, show_default="all", help="Split of the data to use; repeatable."),
    click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Samples per batch."),
    click.option("--device", default="auto", show_default=True, help="Device to run on: auto, cpu, cuda[:n] or mps."),
)


def subject_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the forward pass: checkpoint, model, data, splits, batch size and device."""
    for option in reversed(_SUBJECT):
        command = option(command)
    return command


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose the model and the data."""
    for option in reversed((*_MODEL, *_DATA)):
        command = option(command)
    return command


_LAYERS = (
    click.option(
        "--layers",
        metavar="WHICH",
        default="penultimate",
        show_default=True,
        help="Layers to store beside the penultimate: all, every=K, or NAME,… where * is any text without a dot.",
    ),
    click.option(
        "--pooling",
        type=click.Choice(["mean", "cls", "last", "tokens", "flatten"]),
        show_default="mean; tokens where every position has a label",
        help="How to reduce the output of a layer, or of a model without a head, to rows of features.",
    ),
)


def layer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose layers and their pooling."""
    for option in reversed(_LAYERS):
        command = option(command)
    return command


_WORKERS = (
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Number of processes on this machine; each works on one checkpoint or point at a time.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Use the workers of a Dask cluster instead: tcp://HOST:PORT, or the scheduler file.",
    ),
)


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for parallel work."""
    for option in reversed(_WORKERS):
        command = option(command)
    return command


def range_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the option that divides a split between workers."""
    return click.option("--rows-per-task", type=click.IntRange(min=1), metavar="N", help=help_text)


def explicit_options() -> dict[str, str]:
    """Return the options that the command line sets, as a mapping from parameter name to spelling."""
    context = click.get_current_context()
    options = [option for option in context.command.params if isinstance(option, click.Option)]
    default = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return {
        option.name: option.opts[-1]
        for option in options
        if option.name is not None and context.get_parameter_source(option.name) not in default
    }


_BATCHNORM = (
    click.option(
        "--batchnorm",
        type=click.Choice(["recompute", "interpolate"]),
        default="recompute",
        show_default=True,
        help="Batch-norm statistics between checkpoints: recompute them on training data, or interpolate them.",
    ),
    click.option(
        "--batchnorm-samples",
        type=click.IntRange(min=2),
        default=4096,
        show_default=True,
        help="Number of training samples for --batchnorm recompute.",
    ),
)


def check_batchnorm_samples(batchnorm: str) -> None:
    """Raise UsageError if --batchnorm-samples is set without --batchnorm recompute."""
    if batchnorm != "recompute" and "batchnorm_samples" in explicit_options():
        raise UsageError("--batchnorm-samples needs --batchnorm recompute")


def batchnorm_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for batch-norm statistics between checkpoints."""
    for option in reversed(_BATCHNORM):
        command = option(command)
    return command


_WRITER = (
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float64", "float16", "bfloat16"]),
        show_default="that of the first checkpoint",
        help="Precision of the written tensors.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Number of writer threads; does not change the output."),
)


def writer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of written checkpoints."""
    for option in reversed(_WRITER):
        command = option(command)
    return command


def byte_count(text: str) -> int:
    """Parse a size such as "2GiB", "512 MiB", "1.5GB" or "1000000" into bytes.

    Raises:
        UsageError: If the text is not a size, or the size is below one byte.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?\s*", text, flags=re.IGNORECASE)
    size = 0
    if match:
        number, prefix, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))
    if size < 1:
        raise UsageError(f"--memory: expected a size such as 2GiB or 512MiB, found {text!r}")
    return size


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Parse numbers separated by commas, such as "0.5,2"; raise UsageError if one is not a finite number."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.inf,)
    if not all(math.isfinite(value) for value in values):
        raise UsageError(f"{option}: expected numbers such as 0.5,2, found {text!r}")
    return values


def entropy_orders(text: str | None) -> tuple[float, ...]:
    """Parse Rényi orders such as "0.5,2"; None gives none. Raise UsageError if one is not positive."""
    orders = () if text is None else numbers(text, "--alpha")
    if not all(order > 0 for order in orders):
        raise UsageError(f"--alpha: expected positive numbers such as 0.5,2, found {text!r}")
    return tuple(dict.fromkeys(orders))


def take_arguments(options: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Remove the arguments of the model and of the data from the options, and parse them.

    Args:
        options: Options of the command line, which this changes.

    Returns:
        "model_arguments" and "data_arguments": the arguments by name, None without any.

    Raises:
        UsageError: If one is not NAME=VALUE or a JSON object, or a name occurs twice.
    """
    arguments: dict[str, dict[str, Any] | None] = {}
    for subject in ("model", "data"):
        from_json = json_object(options.pop(f"{subject}_arguments"), f"--{subject}-arguments")
        pairs: tuple[str, ...] = options.pop(f"{subject}_argument")
        parsed = {**(from_json or {}), **_parse_pairs(pairs, from_json or {}, f"--{subject}-argument")}
        arguments[f"{subject}_arguments"] = None if from_json is None and not pairs else parsed
    return arguments


def _parse_pairs(texts: Sequence[str], others: Mapping[str, Any], option: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{option} {text}: expected NAME=VALUE, such as width=64")
        if name in values or name in others:
            raise UsageError(f"{option} {text}: {name} occurs twice")
        values[name] = parse_value(value)
    return values


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


def json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """Parse the JSON object of an option; None gives None. Raise UsageError for any other JSON."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{option}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f'{option}: expected a JSON object such as {{"width": 64}}, found {text}')
    return value
