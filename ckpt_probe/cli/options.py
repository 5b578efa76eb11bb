"""Options that several verbs share: which model, which data, where it runs."""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ckpt_probe.errors import UsageError

_SUBJECT = (
    click.option("--model", help="Model in place of the checkpoint's own: a builtin name or package.module:function."),
    click.option("--model-arguments", metavar="JSON", help="Arguments of the model, a JSON object."),
    click.option(
        "--data",
        help="Data in place of the checkpoint's own: digits, idx:DIR, npz:FILE, union, modular:p=P,op=OP,fraction=F or "
        "module:function.",
    ),
    click.option("--data-arguments", metavar="JSON", help="Arguments of the data, a JSON object."),
    click.option("--classifier", metavar="NAME", help="Name of the last linear layer, where it is not to be found."),
    click.option(
        "--split", "splits", multiple=True, help="A split to use, all where none is named; may be given several times."
    ),
    click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Samples a batch."),
    click.option("--device", default="auto", show_default=True, help="Where to run: auto, cpu, cuda[:n] or mps."),
)


def subject_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what is forwarded and where."""
    for option in reversed(_SUBJECT):
        command = option(command)
    return command


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


_BATCHNORM = (
    click.option(
        "--batchnorm",
        type=click.Choice(["recompute", "interpolate"]),
        default="recompute",
        show_default=True,
        help="Running statistics between checkpoints: estimated anew on training data, or those in between.",
    ),
    click.option(
        "--batchnorm-samples",
        type=click.IntRange(min=2),
        default=4096,
        show_default=True,
        help="Training samples for new running statistics.",
    ),
)


def check_batchnorm_samples(batchnorm: str) -> None:
    """Raise UsageError where samples are given for statistics that are not estimated."""
    if batchnorm != "recompute" and "batchnorm_samples" in given_options():
        raise UsageError("only --batchnorm recompute takes --batchnorm-samples")


def batchnorm_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where batch-norm statistics between checkpoints come from."""
    for option in reversed(_BATCHNORM):
        command = option(command)
    return command


_WRITER = (
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float64", "float16", "bfloat16"]),
        help="Precision of the written tensors, that of the first checkpoint where not named.",
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), help="Threads of the writer; the output is the same for any."
    ),
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


def json_arguments(options: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """The arguments of model and data that the options spell, by the names of their parameters."""
    return {
        "model_arguments": json_object(options["model_arguments"], "--model-arguments"),
        "data_arguments": json_object(options["data_arguments"], "--data-arguments"),
    }


def json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """The mapping that an option's JSON spells, None where it was not given. Raises UsageError for anything else."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{option}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f'{option}: expected a JSON object such as {{"width": 64}}, found {text}')
    return value
