"""Subcommands whose options stand in named groups, and options `--set KEY=VALUE` for less common settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from ckpt_probe.cli.flags import new_name_of, parameters_of


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
        either = " or --KEY VALUE" if flag == "--set" else ", repeatable"
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
            try:
                value = values[name] if name in values else setting.get_default(ctx)
                ctx.params[name] = setting.process_value(ctx, value)
            except click.BadParameter as error:
                raise click.UsageError(f"{self.opts[0]} {name}={values[name]}: {error.message}", ctx) from error
        return texts, args

    def _split(self, ctx: click.Context, texts: Sequence[str]) -> dict[str, str]:
        values: dict[str, str] = {}
        for text in texts:
            key, equals, value = text.partition("=")
            name = key.strip().replace("-", "_")
            if name not in self.settings:
                import difflib  # unused in most calls

                spelled = {other: text for other, (_, text) in parameters_of(ctx.command).items()}
                near = difflib.get_close_matches(name, spelled, n=1)
                hint = f"did you mean {spelled[near[0]]}?" if near else f"there are: {', '.join(self.settings)}"
                raise click.UsageError(f"{self.opts[0]} {text}: unknown key; {hint}", ctx)
            if not equals:
                raise click.UsageError(f"{self.opts[0]} {text}: expected KEY=VALUE", ctx)
            if name in values:
                raise click.UsageError(f"{self.opts[0]} {name}=… takes one value, but occurs twice", ctx)
            values[name] = value
        return values

    def help_rows(self) -> list[tuple[str, str]]:
        """Return the rows of the help page: each key and its explanation."""
        return [(f"{name}={setting.metavar}", help_text(setting)) for name, setting in self.settings.items()]


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
            new = new_name_of(error.option_name, self)
            if new is None:
                raise
            raise click.UsageError(f"{error.option_name} is no longer an option: {new}", ctx) from error

    def _with_settings(self, ctx: click.Context, words: Sequence[str]) -> list[str]:
        """Rewrite keys of --set that are spelled as options: `--state-key A` becomes `--set state_key=A`."""
        settings = {
            name: setting
            for parameter in self.params
            if isinstance(parameter, Settings) and parameter.opts == ["--set"]
            for name, setting in parameter.settings.items()
        }
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
                result += ["--set", f"{name}={value}"]
            elif name.startswith("no_") and name[3:] in settings and not equals:
                result += ["--set", f"{name[3:]}=false"]
            else:
                result.append(word)
        return result

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
        """Write the options under the headings of their groups, all with the same second column."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in self.params:
            if isinstance(option, Settings):
                groups[option.title] = option.help_rows()
            elif isinstance(option, click.Option) and (record := option.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(option, "group", "Other"), []).append((record[0], help_text(option)))
        width = max(len(name) for rows in groups.values() for name, _ in rows)
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in rows], col_max=width + 2)


def help_text(option: click.Option) -> str:
    """Return the explanation of an option, with its default."""
    default = option.show_default if isinstance(option.show_default, str) else option.default
    if isinstance(default, list | tuple):
        default = ",".join(map(str, default))
    default = str(default).lower() if isinstance(default, bool) else default
    note = "required" if option.required else f"default: {default}" if option.show_default else ""
    return f"{option.help} [{note}]" if note else str(option.help)
