"""Tests of the errors of points and barriers: formulas over rows, agreement with dumps, and the printed output."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ckpt_probe.analysis import analyze
from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.cli.interpolate import excess
from ckpt_probe.config import TrainingConfig
from ckpt_probe.data import load_data
from ckpt_probe.models import build_model
from ckpt_probe.paths import barriers, evaluate_path, evaluate_plane
from ckpt_probe.paths.positions import NO_INFLUENCES, ON_CHORD, barriers_with_errors
from ckpt_probe.paths.shapes import linear
from ckpt_probe.reporting.wording import read_path
from ckpt_probe.training import train

HERE = {"device": "cpu", "splits": ["test"], "errors": True}


def trained(directory: Path, seed: int) -> Path:
    settings = {
        "seed": seed,
        "data": {"name": "digits"},
        "model": {"name": "mlp", "arguments": {"hidden": [16]}},
        "training": {"steps": 60},
        "checkpoints": {"steps": [40]},
    }
    train(TrainingConfig.model_validate(settings), directory, device="cpu")
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("runs")
    return trained(directory / "a", 1), trained(directory / "b", 2)


@pytest.fixture(scope="module")
def ends(runs: tuple[Path, Path]) -> tuple[Path, Path]:
    first, second = (directory / "checkpoints" / "step-000060.safetensors" for directory in runs)
    return first, second


def values_of_rows(ends: tuple[Path, Path], alpha: float) -> dict[str, np.ndarray]:
    """Return the loss and the error of each row of the test split at a position."""
    states = []
    for end in ends:
        with open_checkpoint(end) as checkpoint:
            states.append(checkpoint.state_dict())
    model = build_model("mlp", {"hidden": [16], "input_shape": [1, 8, 8], "classes": 10})
    model.load_state_dict(linear(states[0], states[1], alpha))
    split = load_data("digits").splits["test"]
    inputs, labels = split.batch(slice(0, len(split)))
    with torch.no_grad():
        logits = model.eval()(inputs).double()
    losses = F.cross_entropy(logits, labels, reduction="none")
    return {"loss": losses.numpy(), "error": (logits.argmax(dim=1) != labels).double().numpy()}


def test_the_error_of_a_barrier_equals_that_of_the_differences_of_rows(ends: tuple[Path, Path], tmp_path: Path) -> None:
    result = evaluate_path(*ends, tmp_path / "path", points=5, **HERE)
    [barrier] = result.summary
    first, last = (values_of_rows(ends, alpha) for alpha in (0.0, 1.0))
    for quantity in ("loss", "error"):
        name = f"barrier.{quantity}"
        alpha = barrier[f"{name}_alpha"]
        assert 0 < alpha < 1
        at_alpha = values_of_rows(ends, alpha)[quantity]
        rows = at_alpha - (1 - alpha) * first[quantity] - alpha * last[quantity]
        assert barrier[name] == pytest.approx(rows.mean(), rel=1e-4)
        assert barrier[f"{name}_stderr"] == pytest.approx(rows.std(ddof=1) / len(rows) ** 0.5, rel=1e-3)
        highest = max((values_of_rows(ends, p["alpha"])[quantity] for p in result.points), key=lambda v: v.mean())
        rows = highest - first[quantity] / 2 - last[quantity] / 2
        assert barrier[f"{name}_over_mean"] == pytest.approx(rows.mean(), rel=1e-4)
        assert barrier[f"{name}_over_mean_stderr"] == pytest.approx(rows.std(ddof=1) / len(rows) ** 0.5, rel=1e-3)
    assert barrier["missing"] is None
    stored = json.loads((tmp_path / "path" / "path.json").read_text())
    assert stored["summary"] == [barrier]


def test_points_have_the_errors_that_their_dumps_give(ends: tuple[Path, Path], tmp_path: Path) -> None:
    result = evaluate_path(*ends, tmp_path / "path", points=3, keep_dumps=True, **HERE)
    compared = 0
    for point, record in zip(result.points, analyze(tmp_path / "path" / "dumps", errors=True), strict=True):
        for name, value in record.items():
            if name.endswith(("_stderr", "_bias")) and value is not None:
                assert point[name] == pytest.approx(value, rel=1e-6, abs=1e-12), name
                compared += 1
    assert compared > 3 * 50


def test_barriers_by_step_have_errors_when_they_are_resumed(runs: tuple[Path, Path], tmp_path: Path) -> None:
    records = barriers(*runs, out=tmp_path / "out", points=3, **HERE)
    assert all(record["barrier.loss_stderr"] > 0 for record in records if 0 < record["barrier.loss_alpha"] < 1)
    # A path with all points but without barriers is completed from the stored influences.
    (tmp_path / "out" / "step-000060" / "path.json").unlink()
    assert barriers(*runs, out=tmp_path / "out", points=3, **HERE) == records


def test_missing_errors_have_reasons(ends: tuple[Path, Path], tmp_path: Path) -> None:
    same = evaluate_path(ends[0], ends[0], tmp_path / "same", points=3, **HERE).summary[0]
    assert same["barrier.loss_stderr"] is None
    assert f"barrier.loss_stderr: {ON_CHORD}" in same["missing"]
    result = evaluate_path(*ends, tmp_path / "path", points=3, **HERE)
    plain = {name: value for name, value in result.summary[0].items() if not name.endswith("_stderr")}
    [without] = barriers_with_errors([plain], result.points, lambda alpha: tmp_path / f"{alpha}.npz")
    assert without["barrier.loss_stderr"] is None
    assert f"barrier.loss_stderr: {NO_INFLUENCES}" in without["missing"]


def test_a_barrier_within_its_error_is_described_as_such(ends: tuple[Path, Path]) -> None:
    barrier = {
        "split": "test",
        "barrier.loss": 0.24,
        "barrier.loss_alpha": 0.5,
        "barrier.loss_stderr": 0.03,
        "barrier.error": 0.001,
        "barrier.error_alpha": 0.25,
        "barrier.error_stderr": 0.002,
        "barrier.error_over_mean": 0.0015,
        "barrier.error_over_mean_stderr": 0.0021,
    }
    assert excess(barrier, "loss") == "0.240(30) at alpha 0.5"
    assert excess(barrier, "error") == (
        "0.0010(20) at alpha 0.25, within its error (0.0015(21) over the mean of the ends)"
    )
    [sentence] = read_path([barrier], "linear")
    assert "0.0010(20) (within its error) above the chord and the loss 0.240(30):" in sentence


def test_the_commands_print_errors(ends: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["interpolate", *map(str, ends), "-o", str(tmp_path / "path"), "--points", "3", "--split", "test"]
    assert run([*words, "--errors"]) == 0
    output = capsys.readouterr().out
    [barrier] = json.loads((tmp_path / "path" / "path.json").read_text())["summary"]
    assert f"barrier in loss {excess(barrier, 'loss')}, in error {excess(barrier, 'error')}" in output
    assert run([*words, "--errors", "--json"]) == 0
    assert all(json.loads(line)["loss_stderr"] > 0 for line in capsys.readouterr().out.splitlines())
    assert run(words) == 2
    assert "errors True / None" in capsys.readouterr().err


def test_points_and_checkpoints_of_a_plane_have_errors(ends: tuple[Path, Path], tmp_path: Path) -> None:
    result = evaluate_plane(ends[0], out=tmp_path / "plane", grid=(3, 2), directions="random", **HERE)
    losses = values_of_rows(ends, 0.0)["loss"]
    assert result.marks[0]["loss_stderr"] == pytest.approx(losses.std(ddof=1) / len(losses) ** 0.5, rel=1e-4)
    assert all(point["sample.mir_stderr"] > 0 and "sample.mir_bias" in point for point in result.points)
    lowest = min(result.points, key=lambda point: point["loss"])
    assert result.summary[0]["lowest.loss_stderr"] == lowest["loss_stderr"]
