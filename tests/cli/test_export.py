"""Tests of the command `export`, and of the formats of files that `analyze -o` writes."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from ckpt_probe.cli.app import run

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    for step in (1, 2):
        with h5py.File(tmp_path / f"step-{step}.h5", "w") as file:
            file["test/features"], file["test/labels"] = RNG.normal(size=(30, 4)), np.arange(30) % 3
            file["classifier/weights"] = RNG.normal(size=(3, 4))
    return tmp_path


def test_analyze_writes_parquet_if_the_file_name_has_its_suffix(dumps: Path) -> None:
    assert run(["analyze", str(dumps), "--set", "cache=false", "-o", "r.parquet"]) == 0
    assert run(["analyze", str(dumps), "--set", "cache=false", "-o", "r.jsonl"]) == 0
    expected = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
    table = pd.read_parquet("r.parquet")
    assert table["class.mir"].tolist() == [record["class.mir"] for record in expected]
    assert table["step"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parquet"], "--parquet is no longer an option: use -o with a file name that ends in .parquet"),
        (["--json", "--csv", "-o", "r.parquet"], "exclude each other"),
        (["-o", "existing.parquet"], "existing.parquet: exists already"),
    ],
)
def test_conflicting_outputs_are_refused(
    dumps: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("existing.parquet").touch()
    assert run(["analyze", str(dumps), *words]) == 2
    assert message in capsys.readouterr().err


def test_records_are_exported_to_tensorboard_and_to_tables(capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("a", 0.5), ("b", 0.25)):
        Path(f"{name}.jsonl").write_text(json.dumps({"step": 3, "split": "test", "accuracy": value}) + "\n")
    assert run(["export", "a.jsonl", "decay=b.jsonl", "--tensorboard", "events", "-o", "both.parquet"]) == 0
    assert pd.read_parquet("both.parquet").to_dict("list") == {
        "group": ["a", "decay"],
        "step": [3, 3],
        "split": ["test", "test"],
        "accuracy": [0.5, 0.25],
    }
    assert run(["export", "a.jsonl", "decay=b.jsonl", "-o", "both.csv"]) == 0
    assert Path("both.csv").read_text().splitlines()[0] == "group,step,split,accuracy"
    assert run(["export", "a.jsonl", "-o", "both.csv"]) == 2
    assert {file.parent.as_posix() for file in Path("events").rglob("events.*")} == {
        "events/a/test",
        "events/decay/test",
    }
    errors = capsys.readouterr().err
    assert "events: 2 values; view them with: tensorboard --logdir events" in errors
    assert "both.parquet: 2 records" in errors


def test_seeds_of_a_group_are_numbered() -> None:
    for seed in (0, 1):
        Path(f"seed-{seed}.jsonl").write_text(json.dumps({"step": 3, "accuracy": 0.5}) + "\n")
    assert run(["export", "plain=seed-*.jsonl", "--tensorboard", "events"]) == 0
    assert {file.parent.as_posix() for file in Path("events").rglob("events.*")} == {"events/plain-0", "events/plain-1"}
    assert run(["export", "plain=seed-*.jsonl", "-o", "seeds.csv"]) == 0
    assert Path("seeds.csv").read_text().splitlines() == [
        "group,seed,step,accuracy",
        "plain,seed-0,3,0.5",
        "plain,seed-1,3,0.5",
    ]


def test_export_without_an_output_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.jsonl").write_text(json.dumps({"step": 3, "accuracy": 0.5}) + "\n")
    assert run(["export", "a.jsonl"]) == 2
    assert "--out records.parquet, --tensorboard DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "events a --json",
        "plot a --metric class.mir -o a.svg",
        "export a -o a.csv",
        "compare A=a B=b --metric class.mir --step all",
        "similarity a",
    ],
)
def test_a_dump_that_cannot_be_analyzed_is_left_out_with_a_message(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for step in range(3):
            with h5py.File(tmp_path / name / f"step-{step}.h5", "w") as file:
                file["test/features"] = RNG.normal(size=(60, 4)) * (np.nan if step == 1 else 1)
                file["test/labels"], file["classifier/weights"] = np.arange(60) % 3, RNG.normal(size=(3, 4))
    assert run(command.split()) == 0
    message = r"left out: a/step-1\.h5: test: (features|layer penultimate): 60 rows hold NaN or infinity"
    assert re.search(message, capsys.readouterr().err)
