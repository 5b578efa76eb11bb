"""Subcommands whose options stand in named groups, and options `--set KEY=VALUE` for less common settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from ckpt_probe.cli.flags import nearest_option, new_name_of

AS_OPTIONS = f"{__name__}.as_options"
"""Name in the context of the keys of --set that the command line spells as options, with their spelling."""


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
