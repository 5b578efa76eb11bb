"""Tests of the stored points of a path or plane: they are read back, and a damaged line or file is an error."""

import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.errors import DataError
from ckpt_probe.paths import evaluate_path
from ckpt_probe.paths.ledger import Ledger

POINT = {"alpha": 0.5, "split": "test", "loss": 1.25, "accuracy": None, "missing": "accuracy: no logits"}


def ledger_of_lines(directory: Path, *lines: str, kind: str = "path") -> Ledger:
    (directory / "points.jsonl").write_text("\n".join(lines) + "\n")
    return Ledger(directory, kind)


def point_without(*names: str, **changes: Any) -> str:
    return json.dumps({**{name: value for name, value in POINT.items() if name not in names}, **changes})


def test_stored_points_are_read_back_unchanged(tmp_path: Path) -> None:
    points = [{**POINT, "alpha": alpha / 4} for alpha in range(5)]
    Ledger(tmp_path, "path").keep(points)
    assert Ledger(tmp_path, "path").points() == points
    assert Ledger(tmp_path, "path").points(("train", "test")) == points


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(POINT)[:-9], "line 2 is not JSON"),
        ("[" * 9999, "line 2 is not JSON"),
        ("7", "line 2 is not a record"),
        (point_without("alpha"), "record 2: no alpha, which a point of a path has"),
        (point_without(alpha="half"), "record 2: alpha is 'half', expected a number"),
        (point_without(alpha=float("nan")), "record 2: alpha is nan, expected a number"),
        (point_without("split"), "record 2: no split, which every point has"),
        (point_without("loss"), "record 2: no loss, which every point has"),
        (point_without(loss="1.25"), "record 2: loss is '1.25', expected a number"),
        (point_without(split="tesu"), "record 2: split 'tesu', where only train, test is evaluated"),
        (point_without(split=["test"]), "record 2: split is ['test'], expected a number or a text"),
    ],
)
def test_a_damaged_point_is_an_error_that_names_its_line(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        ledger_of_lines(tmp_path, json.dumps(POINT), line).points(("train", "test"))
    assert str(raised.value).startswith(f"{tmp_path / 'points.jsonl'}: ")
    assert message in str(raised.value)
    assert str(raised.value).endswith("`overwrite=True` computes all of it again")


def test_a_point_of_a_plane_has_two_coordinates(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no x and y, which a point of a plane has"):
        ledger_of_lines(tmp_path, point_without("alpha", x=0.5), kind="plane").points()
    placed = json.loads(point_without("alpha", x=0.5, y=1))
    assert ledger_of_lines(tmp_path, json.dumps(placed), kind="plane").points() == [placed]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"summary": []}', '{"summary": {}, "distance": 1, "length": 1}'])
def test_a_damaged_summary_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "path.json").write_text(text)
    with pytest.raises(DataError, match=r"path\.json: .*`overwrite=True` computes all of it again"):
        Ledger(tmp_path, "path").summary()


def test_a_damaged_plan_is_an_error(tmp_path: Path) -> None:
    ledger = ledger_of_lines(tmp_path, json.dumps(POINT))
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(DataError, match=r"plan\.json: not the plan of a path"):
        ledger.prepare({"a": 1}, request={}, overwrite=False)


def test_a_position_with_a_missing_split_is_evaluated_again(tmp_path: Path, train_digits: Any) -> None:
    run = train_digits(tmp_path / "run", [2], hidden=[8])
    first, last = sorted((run / "checkpoints").glob("*.safetensors"))
    complete = evaluate_path(first, last, tmp_path / "path", points=3, device="cpu")
    (tmp_path / "path" / "path.json").unlink()
    points = tmp_path / "path" / "points.jsonl"
    lines = points.read_text().splitlines(keepends=True)
    points.write_text("".join(lines[:3] + lines[4:]))
    again = evaluate_path(first, last, tmp_path / "path", points=3, device="cpu")
    assert (again.points, again.summary) == (complete.points, complete.summary)
