"""Rows of classes by name."""

from ckpt_probe.analysis.entries import named_rows


def test_rows_get_names_beside_numbers() -> None:
    rows = [
        {"split": "test", "class": 0, "samples": 5, "nearest.confusion": "0:3 2:1 1:1"},
        {"split": "test", "class": 2, "samples": 0, "nearest.confusion": None},
    ]
    found = named_rows(rows, ("ant", "tench, Tinca tinca"))
    assert list(found[0]) == ["split", "class", "class_name", "samples", "nearest.confusion", "nearest.named"]
    assert found[0]["nearest.confusion"] == "0:3 2:1 1:1"
    assert found[0]["nearest.named"] == 'ant:3 2:1 "tench, Tinca tinca":1'
    assert (found[1]["class_name"], "nearest.named" in found[1]) == ("2", False)
    assert named_rows(rows, None) == rows


def test_names_that_would_command_a_terminal_are_quoted() -> None:
    (row,) = named_rows([{"class": 0, "nearest.confusion": "0:1"}], ("\x1b[31mred",))
    assert row["nearest.named"] == '"\\u001b[31mred":1'
