"""Tests of values of options: arguments of models and data, sizes, numbers, workers, and settings KEY=VALUE."""

from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete

from ckpt_probe.cli.app import group, run
from ckpt_probe.cli.flags import REPLACED, parameters_of, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("1e-3", 1e-3),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('{"a": [true]}', {"a": [True]}),
        ("{a = 1}", {"a": 1}),
        ("[1, 2,]", [1, 2]),
        ("'x'", "x"),
        ('"64"', "64"),
        ("avg", "avg"),
        ("", ""),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ("nan", "nan"),
        ("2024-01-01", "2024-01-01"),
        ("1\nother = 2", "1\nother = 2"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_values_are_json_or_toml_or_text(text: str, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def parsed(verb: str, *words: str) -> dict[str, Any]:
    command = group.get_command(click.Context(group), verb)
    assert command is not None
    return command.make_context(verb, list(words)).params


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(words) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_arguments_name_value_are_added_to_those_of_a_json_object() -> None:
    words = ("--model-argument", '{"a": 1}', "--model-argument", "b=2")
    parameters = parsed("extract", "A", "-o", "B", *words)
    assert (parameters["model_arguments"], parameters["data_arguments"]) == ({"a": 1, "b": 2}, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("=3", "=3: expected NAME=VALUE such as width=64, or a JSON object"),
        ("a", "a: expected NAME=VALUE such as width=64, or a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_malformed_arguments_are_refused(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "extract", "A", "-o", "B", "--model-argument", text)
    assert f"Invalid value for '--model-argument': {message}" in line


@pytest.mark.parametrize(
    ("text", "workers", "scheduler"),
    [("3", 3, None), ("tcp://host:8786", 1, "tcp://host:8786"), ("s.json", 1, "s.json")],
)
def test_workers_are_a_number_or_an_address(text: str, workers: int, scheduler: str | None) -> None:
    parameters = parsed("analyze", "A", "--workers", text)
    assert (parameters["workers"], parameters["scheduler"]) == (workers, scheduler)


def test_a_setting_can_be_spelled_as_an_option() -> None:
    words = ("--state-key", "a.b", "--rows-per-task=9", "--no-with-logits", "--unlabelled", "--scheduler", "s.json")
    parameters = parsed("extract", "A", "-o", "B", *words)
    assert (parameters["state_key"], parameters["rows_per_task"]) == ("a.b", 9)
    assert (parameters["with_logits"], parameters["unlabelled"], parameters["scheduler"]) == (False, True, "s.json")
    assert parsed("analyze", "A", "--no-cache")["cache"] is False
    assert parsed("extract", "-o", "B", "--", "--state-key")["checkpoints"] is not None


@pytest.mark.parametrize("words", [("--renyi", "0.5,2"), ("--set", "renyi=0.5,2"), ("--set", "orders=0.5,2")])
def test_a_key_is_the_name_of_the_option_or_the_keyword(words: tuple[str, ...]) -> None:
    assert parsed("analyze", "A", *words)["orders"] == (0.5, 2.0)


def test_settings_of_several_values_are_repeatable() -> None:
    words = ("--set", "model_argument=a=1", "--model-argument", '{"b": 2}', "--set", "model_arguments=c=x=y")
    assert parsed("extract", "A", "-o", "B", *words)["model_arguments"] == {"a": 1, "b": 2, "c": "x=y"}
    assert parsed("similarity", "A", "--layer", "a", "--set", "layer=b")["layers"] == ("a", "b")


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("--batchsize", "; did you mean --batch-size?"),
        ("--ouput", "; did you mean --out?"),
        ("--splits", "; did you mean --split?"),
        ("--max-row", "; did you mean --sampling max_rows?"),
        ("--zzz", " (see: "),
    ],
)
def test_an_unknown_option_suggests_the_nearest_option_or_key(
    option: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"No such option '{option}'{hint}" in error_of(capsys, "extract", "A", "-o", "B", option, "4")


@pytest.mark.parametrize(
    ("before", "incomplete", "completions"),
    [((), "--bat", ["--batch-size"]), ((), "--dev", ["--device"]), (("--set",), "batch", ["batch_size="])],
)
def test_the_shell_completes_options_and_keys(before: tuple[str, ...], incomplete: str, completions: list[str]) -> None:
    complete = ShellComplete(group, {}, "ckpt-probe", "_CKPT_PROBE_COMPLETE")
    assert [item.value for item in complete.get_completions(["extract", *before], incomplete)] == completions


def test_settings_become_parameters_of_the_command() -> None:
    words = ("--set", "state_key=a.b", "--set", "batchnorm-samples=9", "--set", "keep_dumps=yes", "--set", "span=-1:2")
    parameters = parsed("interpolate", "A", "B", "-o", "C", *words)
    assert (parameters["state_key"], parameters["batchnorm_samples"], parameters["keep_dumps"]) == ("a.b", 9, True)
    assert (parameters["span"], parameters["curve_epochs"], parameters["midpoint"]) == ((-1.0, 2.0), 20.0, None)
    assert "set_values" not in parameters


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "state_kee=a"), "--set state_kee=a: unknown key; did you mean --state-key?"),
        (("--set", "batchsize=3"), "--set batchsize=3: unknown key; did you mean --batch-size?"),
        (("--set", "x=a"), "--set x=a: unknown key; there are: "),
        (("--set", "base"), "--set base: expected KEY=VALUE"),
        (("--set", "base=a", "--set", "base=b"), "--set base=… takes one value, but occurs twice"),
        (("--base", "a", "--set", "base=b"), "--set base=… takes one value, but occurs twice"),
        (("--state-key",), "Option '--state-key' requires an argument."),
        (("--set", "with_logits=perhaps"), "--set with_logits=perhaps: 'perhaps' is not a valid boolean"),
        (("--set", "rows_per_task=0"), "--set rows_per_task=0: 0 is not in the range x>=1."),
        (("--rows-per-task", "0"), "Invalid value for '--rows-per-task': 0 is not in the range x>=1."),
        (
            ("--sampling", "max_rows=many"),
            "--sampling max_rows=many: 'many' is not a valid integer range.",
        ),
        (("--set", "until=3"), "--until needs --follow"),
    ],
)
def test_invalid_settings_are_refused(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_of(capsys, "extract", "A", "-o", "B", *words)


@pytest.mark.parametrize(
    ("verb", "option", "message"),
    [
        ("analyze", "--tolerance", "--tolerance is no longer an option: use --sampling tolerance=VALUE"),
        ("analyze", "--alpha", "--alpha is no longer an option: use --renyi"),
        ("analyze", "--weights-only", "use the command ckpt-probe weights CHECKPOINTS"),
        ("interpolate", "--consecutive", "use the command ckpt-probe barriers RUN"),
        ("plot", "--log-x", "use --log x"),
        ("train", "--seed", "use --set seed=N"),
    ],
)
def test_a_removed_option_names_its_replacement(
    verb: str, option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_of(capsys, verb, "A", "-o", "C", option, "x")


def test_no_existing_option_is_listed_as_removed_from_all_commands() -> None:
    existing = {
        spelling
        for verb in group.list_commands(click.Context(group))
        if (command := group.get_command(click.Context(group), verb)) is not None
        for _, spelling in parameters_of(command).values()
    }
    assert existing & REPLACED.keys() == {"--resume"}
