"""The plane of a trajectory: its checkpoints lie in it where principal components put them, with their own loss."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.config import TrainingConfig
from ckpt_probe.errors import UsageError
from ckpt_probe.paths import evaluate_plane
from ckpt_probe.training import train


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with five checkpoints."""
    settings = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "arguments": {"hidden": [12]}},
        "training": {"steps": 60},
        "checkpoints": {"steps": [0, 10, 20, 40]},
    }
    path = tmp_path_factory.mktemp("trajectory") / "run"
    train(TrainingConfig.model_validate(settings), path, device="cpu")
    return path


def test_the_checkpoints_are_where_principal_components_put_them(directory: Path, tmp_path: Path) -> None:
    result = evaluate_plane(directory, out=tmp_path / "p", directions="pca", grid=3, splits="test", device="cpu")
    vectors = []
    for file in sorted((directory / "checkpoints").iterdir()):
        with open_checkpoint(file) as checkpoint:
            vectors.append(torch.cat([checkpoint.read(n).flatten() for n in checkpoint.names]).double().numpy())
    centred = np.stack(vectors) - np.mean(vectors, axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    for i, name in enumerate(("x", "y")):
        found = [mark[name] for mark in result.marks]
        np.testing.assert_allclose(np.abs(found), np.abs(centred @ axes[i]), rtol=1e-5, atol=1e-6)
        share = result.axes[f"share.{('first', 'second')[i]}"]
        assert share == pytest.approx(values[i] ** 2 / (values**2).sum(), rel=1e-8)
    assert [mark["checkpoint"] for mark in result.marks][-1] == "step-000060.safetensors"
    assert len(result.points) == 9
    assert result.marks[-1]["loss"] < result.marks[0]["loss"]


def test_the_command_draws_the_route_and_states_the_shares(directory: Path, tmp_path: Path, capsys) -> None:
    words = ["plane", str(directory), "-o", str(tmp_path / "p"), "--directions", "pca", "--grid", "3"]
    assert run([*words, "--split", "test", "--device", "cpu", "--figure", str(tmp_path / "p.svg")]) == 0
    out = capsys.readouterr().out
    assert "shares of variance" in out
    assert "of a random walk as long" in out
    assert (tmp_path / "p.svg").exists()
    assert json.loads((tmp_path / "p" / "plane.json").read_text())["checkpoints"]["5"] == "step-000060.safetensors"
    assert run(["report", str(tmp_path / "p"), "-o", str(tmp_path / "r.html")]) == 0


def test_too_few_checkpoints(directory: Path, tmp_path: Path) -> None:
    file = directory / "checkpoints" / "step-000060.safetensors"
    with pytest.raises(UsageError, match="needs a series of at least three, found 1"):
        evaluate_plane(file, out=tmp_path / "p", directions="pca")
