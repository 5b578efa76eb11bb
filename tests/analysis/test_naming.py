"""Tests of names of classes in rows of per-class results."""

from ckpt_probe.analysis.entries import named_rows


def test_rows_have_names_and_numbers_of_classes() -> None:
    rows = [
        {"split": "test", "class": 0, "samples": 5, "nearest.confusion": "0:3 2:1 1:1"},
        {"split": "test", "class": 2, "samples": 0, "nearest.confusion": None},
    ]
    named = named_rows(rows, ("ant", "tench, Tinca tinca"))
    assert list(named[0]) == ["split", "class", "class_name", "samples", "nearest.confusion", "nearest.named"]
    assert named[0]["nearest.confusion"] == "0:3 2:1 1:1"
    assert named[0]["nearest.named"] == 'ant:3 2:1 "tench, Tinca tinca":1'
    assert (named[1]["class_name"], "nearest.named" in named[1]) == ("2", False)
    assert named_rows(rows, None) == rows


def test_names_with_control_characters_are_escaped() -> None:
    (row,) = named_rows([{"class": 0, "nearest.confusion": "0:1"}], ("\x1b[31mred",))
    assert row["nearest.named"] == '"\\u001b[31mred":1'
