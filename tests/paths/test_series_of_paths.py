"""Tests of barriers by training step: two runs paired by step, neighbours in one run, resume, and refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from ckpt_probe.cli.app import run
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.paths import barriers, evaluate_path
from ckpt_probe.progress import MessageLog

HERE = {"device": "cpu", "points": 3, "splits": ["test"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("runs")
    return train_digits(directory / "a", [10, 20, 40], seed=1), train_digits(directory / "b", [20, 30, 40], seed=2)


def test_checkpoints_of_two_runs_are_paired_by_step(runs: tuple[Path, Path], tmp_path: Path) -> None:
    log = MessageLog()
    records = barriers(*runs, out=tmp_path / "out", progress=log, **HERE)
    assert [record["step"] for record in records] == [0, 20, 40]
    assert log.messages == ["2 checkpoints have no counterpart at the same step and were left out"]
    ends = (run / "checkpoints" / "step-000020.safetensors" for run in runs)
    single = evaluate_path(*ends, tmp_path / "single", **HERE)
    assert records[1] == {"step": 20, **single.summary[0]}
    lines = (tmp_path / "out" / "barriers.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    shutil.rmtree(tmp_path / "out" / "step-000020")
    before = (tmp_path / "out" / "step-000040" / "points.jsonl").stat().st_mtime_ns
    assert barriers(*runs, out=tmp_path / "out", **HERE) == records
    assert (tmp_path / "out" / "step-000040" / "points.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"contains points of another path .*: b "):
        barriers(runs[0], runs[0], out=tmp_path / "out", **HERE)


def test_neighbouring_checkpoints_of_one_run_are_paired(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["barriers", str(runs[0]), "-o", str(tmp_path / "out"), "--points", "3", "--json"]
    assert run([*words, "--split", "test", "--device", "cpu"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["step"], r["to_step"]) for r in records] == [(0, 10), (10, 20), (20, 40)]
    assert (tmp_path / "out" / "step-000000--step-000010" / "path.json").exists()


def test_pairs_with_a_checkpoint_of_nan_are_left_out_with_a_message(runs: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoints = shutil.copytree(runs[0] / "checkpoints", tmp_path / "run")
    damage(checkpoints / "step-000040.safetensors")
    log = MessageLog()
    records = barriers(checkpoints, out=tmp_path / "out", progress=log, **HERE)
    assert [(record["step"], record["to_step"]) for record in records] == [(0, 10), (10, 20)]
    reason = "step-000040.safetensors: tensor '1.weight' contains NaN or infinity"
    assert any(each.startswith("left out: step-000020--step-000040: ") and reason in each for each in log.messages)
    for step in (0, 20):
        damage(checkpoints / f"step-{step:06d}.safetensors")
    with pytest.raises(DataError, match=r"step-000000\.safetensors: tensor '1\.weight' contains NaN"):
        barriers(checkpoints, out=tmp_path / "none", **HERE)


def damage(checkpoint: Path) -> None:
    """Set the first weights to NaN, as in a run that has diverged."""
    with safe_open(checkpoint, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {name: text for name, text in file.metadata().items() if name != "ckpt_probe.sha256"}
    save_file({**tensors, "1.weight": tensors["1.weight"] * float("nan")}, checkpoint, metadata)


def test_checkpoints_that_cannot_be_paired_are_errors(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [run_directory / "checkpoints" / "step-000010.safetensors" for run_directory in runs[:1]]
    with pytest.raises(UsageError, match="only one checkpoint; barriers within a run need"):
        barriers(files[0], None, out=tmp_path / "out", base=str(files[0]))
    with pytest.raises(UsageError, match="the runs have no checkpoints at the same step"):
        barriers(files[0], runs[1] / "checkpoints" / "step-000030.safetensors", out=tmp_path / "out")
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("x", "y"):
        shutil.copy(files[0], twice / f"{name}.safetensors")
    with pytest.raises(DataError, match="have the same step"):
        barriers(runs[0], twice, out=tmp_path / "out")
    for words, message in (
        (["interpolate", "a"], "Missing argument 'B'"),
        (["interpolate", *map(str, runs)], "two runs; ckpt-probe barriers computes"),
        (["interpolate", "a", "--consecutive"], "use the command ckpt-probe barriers RUN"),
        (["barriers", "a", "--alpha", "0.5"], "No such option '--alpha' (see: ckpt-probe barriers --help)"),
    ):
        assert run([*words, "-o", "out"]) == 2
        assert message in capsys.readouterr().err
    for words, message in (
        (["--points", "2"], "--points"),
        (["--set", "span=1:0"], "--set span=1:0"),
        (["--set", "span=5"], "--set span=5"),
    ):
        assert run(["interpolate", "a", "b", "-o", "out", *words]) == 2
        assert message in capsys.readouterr().err
