"""Subcommands and their options: named groups of the help page, settings KEY=VALUE, and options that several share."""

import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ckpt_probe.cli.flags import ORDERS, PATH, POSITIVE, SIZE, WHOLE, nearest_option, new_name_of, parse_arguments

Function = Callable[..., Any]

AS_OPTIONS = f"{__name__}.as_options"
"""Name in the context of the keys of --set that the command line spells as options, with their spelling."""


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
    if not attributes.get("required"):  # click 8.3 takes None for the value of an option that is missing
        attributes["default"] = False if kind is bool and default is None else default
    return cls(
        names.split() if names.startswith("-") else [f"--{names.replace('_', '-')}", names],
        metavar=metavar,
        help=help_text,
        type=click.Choice(kind) if isinstance(kind, tuple) else kind,
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


class Settings(click.Option):
    """Repeatable option KEY=VALUE, which passes every key to the command as a parameter of its own.

    Args:
        flag: Name of the option, such as "--set".
        settings: The keys, in the order of the help page.
        title: Heading of the keys in the help page.
    """

    def __init__(self, flag: str, settings: Sequence[click.Option], title: str) -> None:
        super().__init__(
            [flag, f"{flag.lstrip('-')}_values"], multiple=True, metavar="KEY=VALUE", help=f"{title}; repeatable."
        )
        self.settings = {str(setting.name): setting for setting in settings}
        self.keys = {key_of(setting): name for name, setting in self.settings.items()} | {n: n for n in self.settings}
        either = " or --KEY VALUE" if flag == "--set" else ""
        self.title = f"{title} ({flag} KEY=VALUE{either})"

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Convert the values, and store each as a parameter of the context."""
        texts, args = super().handle_parse_result(ctx, opts, args)
        ctx.params.pop(str(self.name), None)
        values = self._split(ctx, texts or ())
        for name, setting in self.settings.items():
            source = ParameterSource.COMMANDLINE if name in values else ParameterSource.DEFAULT
            ctx.set_parameter_source(name, source)
            value = values.get(name, setting.get_default(ctx))
            try:
                ctx.params[name] = setting.process_value(ctx, value)
            except click.BadParameter as error:
                key = key_of(setting)
                flag = ctx.meta.get(AS_OPTIONS, {}).get(key)
                text = (
                    f"Invalid value for '{flag}'"
                    if flag
                    else f"{self.opts[0]} {key}={' '.join(value) if setting.multiple else value}"
                )
                raise click.UsageError(f"{text}: {error.message}", ctx) from error
        return texts, args

    def _split(self, ctx: click.Context, texts: Sequence[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for text in texts:
            key, equals, value = text.partition("=")
            name = self.keys.get(key.strip().replace("-", "_"))
            if name is None:
                hint = (
                    nearest_option(key, ctx.command) or f"there are: {', '.join(map(key_of, self.settings.values()))}"
                )
                raise click.UsageError(f"{self.opts[0]} {text}: unknown key; {hint}", ctx)
            if not equals:
                raise click.UsageError(f"{self.opts[0]} {text}: expected KEY=VALUE", ctx)
            if self.settings[name].multiple:
                values[name] = (*values.get(name, ()), value)
            elif name in values:
                raise click.UsageError(f"{self.opts[0]} {name}=… takes one value, but occurs twice", ctx)
            else:
                values[name] = value
        return values

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the keys that begin with a word."""
        return [
            CompletionItem(f"{key_of(setting)}=")
            for setting in self.settings.values()
            if key_of(setting).startswith(incomplete)
        ]

    def help_rows(self) -> list[tuple[str, str]]:
        """Return the rows of the help page: each key and its explanation."""
        return [(f"{key_of(setting)}={setting.metavar}", help_text(setting)) for setting in self.settings.values()]


def key_of(setting: click.Option) -> str:
    """Return the key of a setting: its longest name on the command line, without dashes before it."""
    return max(setting.opts, key=len).lstrip("-").replace("-", "_")


class Command(click.Command):
    """Subcommand that groups its options, refuses repeated ones, and knows the new names of removed options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line; raise UsageError for an unknown option, or a repeated one that takes one value."""
        args = self._with_settings(ctx, args)
        try:
            if not ctx.resilient_parsing:
                self._require_single_values(ctx, args)
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name, new = error.option_name, new_name_of(error.option_name, self)
            near = nearest_option(name, self)
            hint = f"{name} is no longer an option: {new}" if new else f"No such option '{name}'{near and '; '}{near}"
            raise click.UsageError(hint, ctx) from error

    def _with_settings(self, ctx: click.Context, words: Sequence[str]) -> list[str]:
        """Rewrite keys of --set that are spelled as options: `--state-key A` becomes `--set state_key=A`."""
        settings = {key: group.settings[name] for group in self._settings() for key, name in group.keys.items()}
        result, rest = [], iter(words)
        for word in rest:
            if word == "--":
                return [*result, word, *rest]
            flag, equals, value = word.partition("=")
            name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
            if name in settings:
                if not equals:
                    is_switch = isinstance(settings[name].type, click.types.BoolParamType)
                    value = "true" if is_switch else next(rest, None)
                if value is None:
                    raise click.BadOptionUsage(flag, f"Option '{flag}' requires an argument.", ctx)
                ctx.meta.setdefault(AS_OPTIONS, {})[key_of(settings[name])] = flag
                result += ["--set", f"{name}={value}"]
            elif name.startswith("no_") and name[3:] in settings and not equals:
                result += ["--set", f"{name[3:]}=false"]
            else:
                result.append(word)
        return result

    def _settings(self) -> list[Settings]:
        """Return the group of settings whose keys are options too."""
        return [option for option in self.params if isinstance(option, Settings) and option.opts == ["--set"]]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the completions of a word, with the keys of --set among the options."""
        keys = [setting for group in self._settings() for setting in group.settings.values()]
        items = [CompletionItem(max(key.opts, key=len), help=key.help) for key in keys if incomplete.startswith("-")]
        return super().shell_complete(ctx, incomplete) + [each for each in items if each.value.startswith(incomplete)]

    def _require_single_values(self, ctx: click.Context, args: Sequence[str]) -> None:
        # click would silently use the last of several values.
        _, _, parsed = self.make_parser(ctx).parse_args(list(args))
        for option in parsed:
            if not isinstance(option, click.Option) or option.multiple or option.count:
                continue
            if parsed.count(option) > 1 and (not option.is_flag or option.secondary_opts):
                spelled = " or ".join([*option.opts, *option.secondary_opts])
                raise click.UsageError(f"{spelled} takes one value, but occurs {parsed.count(option)} times", ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under the headings of their groups."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.params:
            if isinstance(option, Settings):
                groups[option.title] = option.help_rows()
            elif isinstance(option, click.Option) and (record := option.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(option, "group", "Other"), []).append((record[0], help_text(option)))
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def help_text(option: click.Option) -> str:
    """Return the explanation of an option, with its default."""
    text = str(option.help)
    default = option.show_default if isinstance(option.show_default, str) else option.default
    if isinstance(default, list | tuple):
        default = ",".join(map(str, default))
    default = str(default).lower() if isinstance(default, bool) else default
    if option.required:
        return f"{text} [required]"
    # The help of a choice may name its default.
    return f"{text} [default: {default}]" if option.show_default and "default" not in text else text
