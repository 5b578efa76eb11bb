"""Options that several verbs share: which model, which data, where it runs."""

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
        help="Where the weights lie in a pickled checkpoint, or what their names begin with, where there are several.",
    ),
    click.option("--base", type=click.Path(path_type=Path), help="The checkpoint that a PEFT adapter was trained on."),
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say of a checkpoint what it does not say itself."""
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
        "--model-argument", metavar="NAME=VALUE", multiple=True, help="One argument of the model; repeatable."
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
        "parquet:FILE, npz:FILE, h5:FILE, idx:DIR, digits, union, modular:p=P,op=OP,fraction=F, "
        "package.module:function or path/to/file.py:function.",
    ),
    click.option("--data-argument", metavar="NAME=VALUE", multiple=True, help="One argument of the data; repeatable."),
    click.option("--data-arguments", metavar="JSON", help="Arguments of the data, as a JSON object."),
    click.option(
        "--data-workers",
        type=click.IntRange(min=0),
        show_default="one per free processor, at most 8",
        help="Processes that read images; the results are the same for any number.",
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
    """Add the options that say what is forwarded and where."""
    for option in reversed(_SUBJECT):
        command = option(command)
    return command


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which model a checkpoint is of, and which data show it."""
    for option in reversed((*_MODEL, *_DATA)):
        command = option(command)
    return command


_LAYERS = (
    click.option(
        "--layers",
        metavar="WHICH",
        default="penultimate",
        show_default=True,
        help="Layers to store beside the penultimate: all, every=K, or NAME,… with * for any text without a dot.",
    ),
    click.option(
        "--pooling",
        type=click.Choice(["mean", "cls", "last", "tokens", "flatten"]),
        show_default="mean; tokens where every position has a label",
        help="How the output of a layer, or the tokens of a model without a head, become rows.",
    ),
)


def layer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which layers of a model are tapped."""
    for option in reversed(_LAYERS):
        command = option(command)
    return command


_WORKERS = (
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes of this machine, each with one checkpoint (or point) at a time.",
    ),
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Use the workers of a Dask cluster instead: tcp://HOST:PORT, or its scheduler file.",
    ),
)


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say who does the work on a series."""
    for option in reversed(_WORKERS):
        command = option(command)
    return command


def range_option(told: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the option by which several workers share one split. told: its help."""
    return click.option("--rows-per-task", type=click.IntRange(min=1), metavar="N", help=told)


def given_options() -> dict[str, str]:
    """The options that the command line itself gives: how each is spelled, by the name of its parameter."""
    context = click.get_current_context()
    given = [option for option in context.command.params if isinstance(option, click.Option) and option.name]
    default = (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return {
        option.name: option.opts[-1]
        for option in given
        if option.name is not None and context.get_parameter_source(option.name) not in default
    }


_BATCHNORM = (
    click.option(
        "--batchnorm",
        type=click.Choice(["recompute", "interpolate"]),
        default="recompute",
        show_default=True,
        help="Batch-norm statistics between checkpoints: recomputed on training data, or interpolated.",
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
    """Raise UsageError where samples are given for statistics that are not estimated."""
    if batchnorm != "recompute" and "batchnorm_samples" in given_options():
        raise UsageError("--batchnorm-samples needs --batchnorm recompute")


def batchnorm_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where batch-norm statistics between checkpoints come from."""
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
    """Add the options of what writes checkpoints."""
    for option in reversed(_WRITER):
        command = option(command)
    return command


def byte_count(text: str) -> int:
    """Bytes that "2GiB", "512 MiB", "1.5GB" or "1000000" spell. Raises UsageError for anything else, and for zero."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)(i?)b?\s*", text, flags=re.IGNORECASE)
    size = 0
    if found:
        number, prefix, binary = found.groups()
        size = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))
    if size < 1:
        raise UsageError(f"--memory: expected a size such as 2GiB or 512MiB, found {text!r}")
    return size


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Numbers that "0.5,2" spells. Raises UsageError where one is none, or not finite."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.inf,)
    if not all(math.isfinite(number) for number in found):
        raise UsageError(f"{option}: expected numbers such as 0.5,2, found {text!r}")
    return found


def entropy_orders(text: str | None) -> tuple[float, ...]:
    """Rényi orders that "0.5,2" spells, none where it was not given. Raises UsageError for what is no order."""
    orders = () if text is None else numbers(text, "--alpha")
    if not all(order > 0 for order in orders):
        raise UsageError(f"--alpha: expected positive numbers such as 0.5,2, found {text!r}")
    return tuple(dict.fromkeys(orders))


def take_arguments(options: dict[str, Any]) -> dict[str, dict[str, Any] | None]:
    """The arguments of model and data that the options spell, taken out of them, by the names of their parameters.

    Raises UsageError where they are not NAME=VALUE or a JSON object, or one name is given twice.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for what in ("model", "data"):
        listed = json_object(options.pop(f"{what}_arguments"), f"--{what}-arguments")
        single: tuple[str, ...] = options.pop(f"{what}_argument")
        found[f"{what}_arguments"] = {**(listed or {}), **_named(single, listed or {}, f"--{what}-argument")}
        if listed is None and not single:
            found[f"{what}_arguments"] = None
    return found


def _named(texts: Sequence[str], others: Mapping[str, Any], option: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{option} {text}: expected NAME=VALUE, such as width=64")
        if name in found or name in others:
            raise UsageError(f"{option} {text}: {name} is given twice")
        found[name] = spelled(value)
    return found


def spelled(text: str) -> Any:
    """The value that a text spells as JSON or as TOML (64, 1e-3, true, [1, 2], {a = 1}), else the text itself."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        pass
    import tomllib

    try:
        found = tomllib.loads(f"value = {text}")
        json.dumps(found, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text


def _no_number(text: str) -> Any:
    raise ValueError(text)


def json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """The mapping that an option's JSON spells, None where it was not given. Raises UsageError for anything else."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{option}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f'{option}: expected a JSON object such as {{"width": 64}}, found {text}')
    return value
