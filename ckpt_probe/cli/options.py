"""Options of subcommands: how one is declared, in which group of the help page, and those that several share."""

import re
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import click
from click.core import ParameterSource

from ckpt_probe.cli.command import Command, Settings
from ckpt_probe.cli.flags import parameters_of
from ckpt_probe.cli.values import ORDERS, PATH, POSITIVE, SIZE, WHOLE, parse_arguments
from ckpt_probe.errors import UsageError

Function = Callable[..., Any]


def verb(name: str, epilog: str) -> Callable[[Function], click.Command]:
    """Return the decorator of a subcommand, which has examples as the last lines of its help page."""
    return click.command(name, cls=Command, epilog=epilog)


def option(
    names: str,
    metavar: str,
    help_text: str,
    kind: Any = str,
    default: Any = None,
    default_text: str = "",
    cls: type[click.Option] = click.Option,
    **attributes: Any,
) -> click.Option:
    """Return an option that takes a value, or a key of `setting_group`.

    Args:
        names: Names on the command line, and the name of the parameter if it differs, such as "--split splits"; of a
            key the name of the parameter alone.
        metavar: Stands for the value in the help page.
        help_text: Explanation, one sentence.
        kind: Type of the value, or a tuple of the texts to choose from.
        default: Default value.
        default_text: Text for the default in the help page, if it is not the value itself.
        cls: Class of the option.
        attributes: Further arguments of `click.Option`.
    """
    return cls(
        names.split() if names.startswith("-") else [f"--{names.replace('_', '-')}", names],
        metavar=metavar,
        help=help_text,
        type=click.Choice(kind) if isinstance(kind, tuple) else kind,
        default=False if kind is bool and default is None else default,
        show_default=default_text or default not in (None, 0),
        **attributes,
    )


def flag(name: str, help_text: str) -> click.Option:
    """Return an option without a value."""
    return click.Option([name], is_flag=True, help=help_text)


def out_option(help_text: str, metavar: str = "FILE", *, required: bool = True) -> click.Option:
    """Return the option --out with a help text."""
    return option("-o --out", metavar, help_text, PATH, required=required)


def split_names(_context: click.Context, _option: click.Parameter, texts: Sequence[str]) -> tuple[str, ...]:
    """Return the names in several texts, separated by commas."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def metric_option(help_text: str, default: Any = None, default_text: str = "") -> click.Option:
    """Return the option --metric for names separated by commas, with a help text; it is repeatable."""
    return option(
        "--metric metrics", "NAME,…", help_text, str, default, default_text, multiple=True, callback=split_names
    )


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


def argument_option(names: str, noun: str) -> click.Option:
    """Return a repeatable option for arguments of a model or of data."""
    text = f"Argument of the {noun}, or JSON; repeatable."
    return option(names, "NAME=VALUE", text, multiple=True, callback=parse_arguments)


DTYPES = ("float32", "float64", "float16", "bfloat16")
DATA_NAMES = "imagefolder:, hf-dataset: or idx:DIR; csv:, parquet:, npz:, h5: or text:FILE; a builtin; FILE.py:NAME."
BATCHNORM = ("recompute", "interpolate")
SECONDS = click.FloatRange(min=0, min_open=True)

SHARED = (
    flag("--json", "Print JSON Lines; missing values are null."),
    flag("--csv", "Print comma-separated values with a header."),
    flag("--wide", "Show every column, however narrow the terminal."),
    out_option("Also write to this file: .csv, .parquet, else JSON Lines.", required=False),
    flag("--overwrite", "Replace the file if it exists."),
    flag("--follow", "Wait for new checkpoints of a training run; end with Ctrl-C."),
    option("--model", "NAME", "timm:NAME, torchvision:NAME, hf:DIR or FILE.py:NAME."),
    argument_option("--model-argument model_arguments", "model"),
    option("--data", "NAME", DATA_NAMES),
    argument_option("--data-argument data_arguments", "data"),
    option("--split splits", "NAME", "Split to use; repeatable.", str, None, "all", multiple=True),
    option("--batch-size", "N", "Samples per batch.", POSITIVE, 256),
    option("--device", "NAME", "auto, cpu, cuda[:n] or mps.", str, "auto"),
    option(
        "--workers --scheduler workers",
        "N|ADDRESS",
        "Processes, or address of a Dask cluster.",
        str,
        "1",
        cls=WorkersOption,
    ),
    option("errors", "BOOL", "Also compute standard errors.", bool),
    option("--renyi orders", "N,…", "Also compute Rényi entropies of orders such as 0.5,2.", ORDERS),
    option("classifier", "NAME", "Last linear layer, or none.", str, None, "automatic"),
    option("state_key", "A.B", "Key of the weights in a file of several models."),
    option("base", "PATH", "Checkpoint of the base model of a PEFT adapter.", PATH),
    option("data_workers", "N", "Processes that read images.", WHOLE, None, "automatic"),
    option("dtype", "NAME", "Type of written tensors.", DTYPES, None, "unchanged"),
    option("memory", "SIZE", "Limit for moments and matrices.", SIZE, "2GiB"),
    option("rows_per_task", "N", "Let workers share splits of more than N rows.", POSITIVE),
    option("cache", "BOOL", "Read and write the cache of records.", bool, True),
    option("every", "SECONDS", "Time between checks of --follow.", SECONDS, 5),
    option("batchnorm", "HOW", "Statistics: recompute (default) or interpolate.", BATCHNORM, "recompute"),
    option("batchnorm_samples", "N", "Samples for batchnorm=recompute.", click.IntRange(min=2), 4096),
)
"""Options of several subcommands, which a group refers to by the names of their parameters."""

MODEL_SETTINGS = "model_arguments data_arguments classifier state_key base data_workers"
FORWARD_SETTINGS = f"batch_size {MODEL_SETTINGS}"


def option_group(title: str, *options: click.Option | str) -> Callable[[Function], Function]:
    """Add options to a command, under one heading of its help page; a text names some of `SHARED`."""

    def decorate(function: Function) -> Function:
        parameters = vars(function).setdefault("__click_params__", [])
        for each in reversed(_resolved(options)):
            each = copy(each)
            each.group = title  # pyright: ignore[reportAttributeAccessIssue]
            parameters.append(each)
        return function

    return decorate


def setting_group(flag: str, title: str, *keys: click.Option | str) -> Callable[[Function], Function]:
    """Add an option KEY=VALUE with these keys; a text names some of `SHARED`."""

    def decorate(function: Function) -> Function:
        vars(function).setdefault("__click_params__", []).append(Settings(flag, _resolved(keys), title))
        return function

    return decorate


def _resolved(options: Sequence[click.Option | str]) -> list[click.Option]:
    shared = {option.name: option for option in SHARED}
    names = [[shared[name] for name in each.split()] if isinstance(each, str) else [each] for each in options]
    return [option for several in names for option in several]


FORWARD = "Model and data (default: those that the checkpoint names)"
model_options = option_group(FORWARD, "model data")
subject_options = option_group(FORWARD, "model data splits device workers")


def explicit_options() -> dict[str, str]:
    """Return what the command line sets: names of parameters, and how the command line spells them."""
    context = click.get_current_context()
    default = (None, ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP)
    return {
        name: spelling
        for name, (_, spelling) in parameters_of(context.command).items()
        if spelling.startswith("-") and context.get_parameter_source(name) not in default
    }


def require_batchnorm_samples(batchnorm: str) -> None:
    """Raise UsageError if `batchnorm_samples` is set although no statistics are recomputed."""
    if batchnorm != "recompute" and "batchnorm_samples" in explicit_options():
        raise UsageError("--set batchnorm_samples=N needs --set batchnorm=recompute")


def require_follow(follow: bool, *names: str) -> None:
    """Raise UsageError if a setting of --follow is set without it."""
    unused = [spelling for name, spelling in explicit_options().items() if name in names]
    if unused and not follow:
        raise UsageError(f"{unused[0]} needs --follow")
