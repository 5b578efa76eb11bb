"""Tests of the command `train`: several seeds, and values changed on the command line."""

import json
from pathlib import Path

import pytest

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.cli.train import parse_seeds

CONFIG = """
[data]
name = "digits"
[model]
name = "mlp"
arguments = { hidden = [8] }
[training]
steps = 4
[checkpoints]
evaluate = ["test"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def weights(run_directory: Path):
    with open_checkpoint(run_directory / "checkpoints" / "step-000004.safetensors") as checkpoint:
        return checkpoint.state_dict(), checkpoint.metadata


def test_each_of_several_seeds_has_the_run_that_it_has_alone(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs"
    assert run(["train", str(config), "-o", str(out), "--seeds", "0..2", "--device", "cpu"]) == 0
    assert "seed-2: trained steps 0 to 4; 2 checkpoints" in capsys.readouterr().err
    assert sorted(entry.name for entry in out.iterdir()) == ["seed-0", "seed-1", "seed-2"]
    assert run(["train", str(config), "-o", str(tmp_path / "one"), "--set", "seed=2", "--device", "cpu"]) == 0
    (alone, metadata), (of_several, _) = weights(tmp_path / "one"), weights(out / "seed-2")
    assert metadata.seed == 2
    assert all((alone[name] == of_several[name]).all() for name in alone)
    assert not (alone["1.weight"] == weights(out / "seed-1")[0]["1.weight"]).all()
    assert run(["train", str(config), "-o", str(out), "--seeds", "0..3", "--resume", "--device", "cpu"]) == 0
    errors = capsys.readouterr().err
    assert errors.count("already finished") == 3
    assert "seed-3: trained steps 0 to 4" in errors


def test_set_changes_the_training_and_its_metadata(config: Path, tmp_path: Path) -> None:
    changed = ["--set", "model.arguments.hidden=[12]", "--set", "loss.mir=0.01"]
    assert run(["train", str(config), "-o", str(tmp_path / "run"), "--device", "cpu", *changed]) == 0
    state, metadata = weights(tmp_path / "run")
    assert state["1.weight"].shape == (12, 64)
    assert metadata.config["loss"]["mir"] == 0.01
    assert set(metadata.metrics) == {"test"}
    expected = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in expected if "split" in line} == {"test"}


@pytest.mark.parametrize(
    "text", ["", "0..999999999", "9" * 5000, "a", "3..1", "0..", "..2", "0,,1", "-1", "1,1", "0..2,2", "1.5"]
)
def test_invalid_seeds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"seed|at most 1000 at a time"):
        parse_seeds(text)


def test_seeds_are_parsed() -> None:
    assert parse_seeds("0..4") == [0, 1, 2, 3, 4]
    assert parse_seeds("7, 2..3") == [7, 2, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1"], "--seed is no longer an option: use --set seed=N"),
        (["--seeds", "0..x"], "'--seeds': expected seeds such as 0..4 or 0,2,5, found '0..x'"),
        (["--set", "seed=1", "--seeds", "0..1"], "--set seed and `seed` exclude each other"),
        (["--set", "loss.mir=0.1\nloss.hdr=0.1"], "--set loss.mir: expected one key=value, found several lines"),
        (["--set", "data.name=digits\nseed=3"], "--set data.name: expected one key=value, found several lines"),
        (["--set", "loss.mir=-1"], "--set loss.mir"),
        (["--set", "loss.cma=0.1"], "need a model with two encoders"),
        (["--set", "loss.task=contrastive"], "need a model with two encoders"),
        (["--set", 'checkpoints.evaluate=["validation"]'], "no split 'validation'"),
    ],
)
def test_invalid_use_is_refused_and_no_run_is_written(
    config: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(config), "-o", str(tmp_path / "run"), *words]) in {1, 2}
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
