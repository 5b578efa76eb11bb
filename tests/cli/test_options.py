"""Arguments of models and data as options spell them."""

from typing import Any

import pytest

from ckpt_probe.cli.options import parse_value, take_arguments
from ckpt_probe.errors import UsageError


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


def test_single_arguments_join_those_of_the_json_object() -> None:
    options = {
        "model_arguments": '{"a": 1}',
        "model_argument": ("b=2",),
        "data_arguments": None,
        "data_argument": (),
        "device": "cpu",
    }
    assert take_arguments(options) == {"model_arguments": {"a": 1, "b": 2}, "data_arguments": None}
    assert options == {"device": "cpu"}


@pytest.mark.parametrize(("text", "told"), [("=3", "expected NAME=VALUE"), ("a", "expected NAME=VALUE")])
def test_what_is_no_argument(text: str, told: str) -> None:
    options = {"model_arguments": None, "model_argument": (text,), "data_arguments": None, "data_argument": ()}
    with pytest.raises(UsageError, match=f"--model-argument {text}: {told}"):
        take_arguments(options)
