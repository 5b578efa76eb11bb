"""Tests that sources of a report are recognised by their contents, named by what differs, and refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.reporting.sources import class_names, kind_of, open_sources, plan_of, read_path, read_plane, records_of


def put(path: Path, *lines: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_kind_of_a_source_is_recognised_by_its_contents(study: Any, tmp_path: Path) -> None:
    renamed = tmp_path / "anything.bin"
    renamed.write_bytes(sorted(study.dumps.glob("*.h5"))[0].read_bytes())
    places = {
        study.dumps: "dumps",
        renamed: "dumps",
        study.records: "records",
        study.root / "runs" / "a": "records",
        study.root / "paths" / "plain": "path",
        study.root / "paths" / "plain" / "points.jsonl": "path",
        study.root / "planes" / "abc": "plane",
        study.root / "planes" / "abc" / "points.jsonl": "plane",
        put(tmp_path / "alone.jsonl", {"alpha": 0.0, "split": "test", "loss": 1.0}): "path",
        put(tmp_path / "text.dat", {"step": 0, "loss": 1.0}): "records",
    }
    assert {path: kind_of(path) for path in places} == places


def test_sources_have_stated_names_or_the_part_in_which_their_paths_differ(study: Any) -> None:
    named = open_sources([*study.sources, f"mine={study.records}", str(study.root / "runs" / "b")])
    assert [source.name for source in named] == [
        "dumps/a", "dumps/b", "paths/plain", "paths/aligned", "planes/abc", "mine", "runs/b",
    ]  # fmt: skip
    assert [source.name for source in open_sources(study.sources[:2])] == ["a", "b"]
    assert named[6].path == study.root / "runs" / "b" / "metrics.jsonl"
    points = study.root / "paths" / "plain" / "points.jsonl"
    assert open_sources([str(points)])[0].path == points.parent


def test_unfinished_paths_and_files_of_points_have_barriers(study: Any, tmp_path: Path) -> None:
    finished_path = study.root / "paths" / "plain"
    finished = read_path(open_sources([str(finished_path)])[0])
    for name in ("plan.json", "points.jsonl"):
        (tmp_path / name).write_bytes((finished_path / name).read_bytes())
    [begun] = open_sources([str(tmp_path)])
    assert (begun.kind, plan_of(begun)["points"]) == ("path", 5)
    (tmp_path / "elsewhere").mkdir()
    alone = tmp_path / "elsewhere" / "points.jsonl"
    alone.write_bytes((finished_path / "points.jsonl").read_bytes())
    for source in (begun, open_sources([str(alone)])[0]):
        path = read_path(source)
        assert path.points == finished.points
        assert [entry["barrier.loss"] for entry in path.summary] == [
            entry["barrier.loss"] for entry in finished.summary
        ]
        assert path.result == {}
    # Without the second end there is neither a chord nor a barrier.
    alone.write_text("".join(line + "\n" for line in alone.read_text().splitlines()[:4]))
    assert read_path(open_sources([str(alone)])[0]).summary == []


def test_a_plane_is_read_back_as_it_was_evaluated(study: Any) -> None:
    plane = read_plane(open_sources([str(study.root / "planes" / "abc")])[0])
    assert (len(plane.xs), len(plane.ys), len(plane.points)) == (4, 4, 32)
    assert {mark["name"] for mark in plane.marks} == {"A", "B", "C"}


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("no.jsonl", None, DataError, "no.jsonl: cannot be read: No such file"),
        ("a.txt", "hello", DataError, "a.txt: is neither HDF5 nor JSON Lines; expected dumps (.h5"),
        ("a.jsonl", " \n", DataError, "a.jsonl: is empty"),
        ("a.h5", "no HDF5", None, ""),
        ("a.jsonl", '{"step": 1, "accuracy": "high"}\n', DataError, "record 1: accuracy is 'high', expected a number"),
        ("a.jsonl", '{"step": 1, "loss": 1e999}\n', DataError, "record 1: loss is inf, expected a number"),
        ("a.jsonl", '{"step": 1%s, "loss": 1}\n' % ("0" * 400), DataError, "expected a number"),
        ("a.jsonl", '{"step": 1}\n[1]\n', DataError, "a.jsonl: line 2"),
        ("d/nothing.txt", "", DataError, "d: no source of a report in this directory"),
        ("d/plan.json", '{"directions": "checkpoints"}', DataError, "d: no source of a report in this directory"),
    ],
)
def test_files_that_are_no_source_are_refused(
    name: str, content: str | None, kind: Any, message: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if content is not None:
        file.write_text(content)
    source = file.parent if name.startswith("d/") else file
    if kind is None:
        assert kind_of(source) == "dumps"
        return
    with pytest.raises(kind) as error:
        records_of(open_sources([str(source)])[0])
    assert message in str(error.value)


def test_a_damaged_path_or_plane_is_an_error_that_names_the_file(study: Any, tmp_path: Path) -> None:
    for name, file, change, message in (
        ("paths/plain", "path.json", {"summary": 3}, "path.json: summary: expected a list of JSON objects"),
        ("paths/plain", "path.json", None, "path.json: not the plan or summary of a path"),
        ("paths/plain", "plan.json", None, "plan.json: not the plan or summary of a path"),
        ("planes/abc", "plane.json", {"xs": [1]}, "plane.json: xs: expected a list of at least two numbers"),
        ("planes/abc", "plane.json", {"marks": [{"name": "A"}]}, "marks: a record without x and y"),
        ("planes/abc", "plane.json", {"xs": [0, "x"]}, "xs is 'x', expected a number"),
    ):
        directory = tmp_path / f"{file}-{len(message)}"
        directory.mkdir(exist_ok=True)
        for original in (study.root / name).glob("*.json*"):
            (directory / original.name).write_bytes(original.read_bytes())
        content = {**json.loads((directory / file).read_text()), **change} if change else "{"
        (directory / file).write_text(content if isinstance(content, str) else json.dumps(content))
        [source] = open_sources([str(directory)])
        with pytest.raises(DataError) as error:
            read_path(source) if source.kind == "path" else read_plane(source)
        assert message in str(error.value)


def test_sources_with_the_same_name_or_file_are_refused(study: Any) -> None:
    with pytest.raises(UsageError, match="called x; name each source once"):
        open_sources([f"x={study.records}", f"x={study.dumps}"])
    with pytest.raises(UsageError, match=r"read from .*name each source once"):
        open_sources([str(study.records), f"x={study.records}"])


def test_names_of_classes_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("cat\n\ndog \n", encoding="utf-8")
    assert class_names(file) == ("cat", "", "dog")
    for content, message in ((b"\n \n", "contains no name"), (b"\xff\xfe\x00", "not a text file")):
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            class_names(file)
