"""Tests of the command `plot`: files and their labels, seeds, marks, and refused input."""

import json
from pathlib import Path

import pytest

from ckpt_probe.cli.app import run
from ckpt_probe.reporting.conditions import open_conditions


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write records of two conditions with two seeds, and points of a path, in the working directory; return it."""
    monkeypatch.chdir(tmp_path)
    for condition in ("plain", "decay"):
        for seed in range(2):
            content = [
                {"step": s, "split": t, "accuracy": s / 100, "class.mir": 0.9, "reference.mir": 0.95}
                for s in (0, 10, 90)
                for t in ("train", "test")
            ]
            write(tmp_path / condition / f"seed-{seed}" / "metrics.jsonl", content)
    write(tmp_path / "empty.jsonl", [])
    write(tmp_path / "points.jsonl", [{"alpha": a / 4, "split": "test", "loss": a} for a in range(5)])
    return tmp_path


def write(file: Path, records: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_seeds_of_two_conditions_are_drawn_with_their_labels(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plain=plain/*/metrics.jsonl", "decay=decay/seed-0/metrics.jsonl,decay/seed-1/metrics.jsonl"]
    panels = ["--metric", "class.mir,accuracy", "--metric", "accuracy"]
    assert run(["plot", *words, "-o", "a.svg", *panels, "--log", "x", "--mark", "step=50:half", "--title", "Two"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "a.svg: 2 panels of 4 files\n")
    text = (directory / "a.svg").read_text()
    for message in ("plain (2 seeds)", "decay (2 seeds)", "half", "Two", "train", "test", "at collapse"):
        assert f">{message}<" in text, message
    assert run(["plot", *words, "-o", "b.svg", "--metric", "accuracy", "--split", "test"]) == 0
    assert ">train<" not in (directory / "b.svg").read_text()


def test_a_path_is_drawn_along_alpha(directory: Path) -> None:
    for name in ("a.svg", "a.png", "a.pdf"):
        assert run(["plot", "points.jsonl", "-o", name, "--metric", "loss"]) == 0
    assert "position on the path" in (directory / "a.svg").read_text()
    assert (directory / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (directory / "a.pdf").read_bytes().startswith(b"%PDF")


def test_files_of_the_same_name_get_distinct_labels(directory: Path) -> None:
    runs = [f"plain/seed-{seed}/metrics.jsonl" for seed in range(2)]
    assert open_conditions(["points.jsonl"]) == {directory.name: [Path("points.jsonl")]}
    assert open_conditions(runs) == {f"seed-{seed}": [Path(run)] for seed, run in enumerate(runs)}
    assert list(open_conditions([runs[0], "decay/seed-0/metrics.jsonl"])) == ["plain/seed-0", "decay/seed-0"]
    assert open_conditions(["a=points.jsonl", "points.jsonl"]).keys() == {"a", directory.name}
    assert open_conditions(["b=plain/*/*.jsonl"]) == {"b": [Path(run) for run in runs]}
    many = ",".join([runs[0]] * 200)
    assert open_conditions([f"many={many}"]) == {"many": [Path(runs[0])] * 200}
    assert open_conditions([f"c={directory}/plain/*/*.jsonl"]) == {"c": [directory / run for run in runs]}
    # A file may have = and , in its name.
    write(directory / "x=1,2.jsonl", [])
    assert open_conditions(["x=1,2.jsonl"]) == {"x=1,2": [Path("x=1,2.jsonl")]}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere.jsonl", "--metric", "loss"], 1, "nowhere.jsonl: no such file"),
        (["empty.jsonl", "--metric", "loss"], 1, "empty.jsonl: no record in it: the file is empty"),
        (["a=points.jsonl,empty.jsonl", "--metric", "loss"], 1, "empty.jsonl: no record in it: the file is empty"),
        (["a=none/*.jsonl", "--metric", "loss"], 2, "none/*.jsonl: no file matches this pattern"),
        (
            ["a=points.jsonl", "a=points.jsonl", "--metric", "loss"],
            2,
            "two sources are called a; name each source once",
        ),
        (["points.jsonl"], 2, "--metric"),
        (["points.jsonl", "--metric", ","], 2, "--metric: expected names"),
        (["points.jsonl", "--metric", "lost"], 1, "no record has the metric 'lost'; did you mean loss?"),
        (["points.jsonl", "--metric", "loss", "--x", "epoch"], 1, "no record has loss at a known epoch; axes: alpha; "),
        (["points.jsonl", "--metric", "loss", "--mark", "alpha=x:y"], 2, "--mark: expected a mark such as alpha=1200"),
        (["points.jsonl", "--metric", "loss", "--mark", "alpha=1e999:y"], 2, "--mark: expected a mark such as alpha"),
        (
            ["points.jsonl", "--metric", "loss", "--mark", "step=5:y"],
            2,
            "gives a value of step, but the x axis is alpha",
        ),
        (["points.jsonl", "--metric", "loss", "--out", "a.jpg"], 2, "a.jpg: expected a name that ends in .svg"),
        (["points.jsonl", "--metric", "loss", "--out", "points.jsonl"], 2, "points.jsonl: expected a name"),
    ],
)
def test_invalid_arguments_and_data_are_refused_in_one_line(
    directory: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plot", *([] if "--out" in words else ["--out", "a.svg"]), *words]) == code
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (directory / "a.svg").exists()


def test_warnings_of_matplotlib_are_printed_in_one_line(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(directory / "flat.jsonl", [{"step": step, "split": "test", "accuracy": 0.0} for step in range(3)])
    words = [
        "plot",
        "flat.jsonl",
        "-o",
        "a.png",
        "--metric",
        "accuracy",
        "--log",
        "y",
        "--title",
        "\U00013000 \U00013001",
    ]
    assert run(words) == 0
    errors = capfd.readouterr().err.splitlines()
    assert errors[0].startswith("3 values of 0 or less have no place on a logarithmic axis")
    assert errors[1].startswith("matplotlib warns: ")
    assert "Data has no positive values" in errors[1]
    assert errors[1].count("Glyph") == 2
    assert errors[2:] == ["a.png: 1 panels of 1 files"]


def test_existing_files_need_overwrite(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plot", "points.jsonl", "-o", "a.svg", "--metric", "loss"]
    assert run(words) == 0
    before = (directory / "a.svg").read_bytes()
    assert run(words) == 2
    assert "exists already; add --overwrite" in capsys.readouterr().err
    assert run([*words, "--overwrite"]) == 0
    assert (directory / "a.svg").read_bytes() == before
