"""Tests of planes of weights against brute force, and of the principal plane of a run, in which checkpoints lie."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import open_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.config import TrainingConfig
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.paths import evaluate_plane
from ckpt_probe.paths.shapes import filter_normalised, plane_through, random_direction, random_plane
from ckpt_probe.training import train


def state(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {"fc.weight": (5, 4), "fc.bias": (5,), "scale": ()}
    floats = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in drawn.items()}
    return {**{name: tensor.to(dtype) for name, tensor in floats.items()}, "steps": torch.tensor(seed)}


def flat(tensors: dict[str, Tensor]) -> np.ndarray:
    floats = [t for t in tensors.values() if t.is_floating_point()]
    return np.concatenate([t.double().numpy().ravel() for t in floats])


def test_axes_and_positions_equal_those_of_gram_schmidt() -> None:
    states = [state(seed) for seed in (1, 2, 3)]
    a, b, c = (flat(tensors) for tensors in states)
    u = (b - a) / np.linalg.norm(b - a)
    v = (c - a) - np.dot(c - a, u) * u
    v /= np.linalg.norm(v)
    plane = plane_through(*states)
    axis_u, axis_v = (flat(plane.at(*position)) - a for position in ((1, 0), (0, 1)))
    np.testing.assert_allclose(axis_u, u, atol=1e-14)
    np.testing.assert_allclose(axis_v, v, atol=1e-14)
    assert abs(np.dot(axis_u, axis_v)) < 1e-14
    np.testing.assert_allclose(flat(plane.at(-0.7, 2.5)), a - 0.7 * u + 2.5 * v, atol=1e-13)
    for state_at_mark, (name, x, y) in zip(states, plane.marks, strict=True):
        np.testing.assert_allclose(
            (x, y), (np.dot(flat(state_at_mark) - a, u), np.dot(flat(state_at_mark) - a, v)), atol=1e-13
        )
        np.testing.assert_allclose(flat(plane.at(x, y)), flat(state_at_mark), atol=1e-13)
        assert name == "ABC"[plane.marks.index((name, x, y))]
    cosine = np.dot(b - a, c - a) / np.linalg.norm(b - a) / np.linalg.norm(c - a)
    assert plane.axes == pytest.approx(
        {
            "distance.ab": np.linalg.norm(b - a),
            "distance.ac": np.linalg.norm(c - a),
            "distance.bc": np.linalg.norm(c - b),
            "angle": math.degrees(math.acos(cosine)),
        },
        rel=1e-12,
    )


def test_integers_are_those_of_a_and_the_origin_is_exactly_a() -> None:
    plane = plane_through(*(state(seed, torch.bfloat16) for seed in (1, 2, 3)))
    moved = plane.at(0.3, 0.4)
    assert moved["steps"].item() == 1
    assert moved["fc.weight"].dtype == torch.float32
    assert all(torch.equal(tensor, state(1, torch.bfloat16)[name]) for name, tensor in plane.at(0, 0).items())


@pytest.mark.parametrize(
    ("seeds", "message"), [((1, 1, 2), "A and B have"), ((1, 2, 1), "A and C have"), ((1, 2, 2), "B and C have")]
)
def test_equal_checkpoints_span_no_plane(seeds: tuple[int, int, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plane_through(*(state(seed) for seed in seeds))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_three_checkpoints_on_a_line_span_no_plane_despite_rounding(dtype: torch.dtype) -> None:
    a, b = state(1, dtype), state(2, dtype)
    third = {n: torch.lerp(t.double(), b[n].double(), 0.3).to(dtype) for n, t in a.items() if n != "steps"}
    with pytest.raises(DataError, match=r"A, B and C lie on one line .* and span no plane"):
        plane_through(a, b, {**third, "steps": a["steps"]})
    third["fc.bias"] = third["fc.bias"] + torch.tensor([0.5, -0.5, 0.5, 0.5, -0.5], dtype=dtype)
    assert plane_through(a, b, {**third, "steps": a["steps"]}).marks[2][2] > 0.5


def test_nan_is_an_error_that_names_the_tensor() -> None:
    broken = state(3)
    broken["fc.bias"][2] = math.nan
    with pytest.raises(DataError, match=r"^C: tensor 'fc\.bias' contains NaN"):
        plane_through(state(1), state(2), broken)


def test_filters_are_normalised_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((6, 3, 2, 2), (4, 7)):
        direction, weights = (torch.randn(shape, generator=generator) for _ in range(2))
        weights[1] = 0
        normalised = filter_normalised(direction, weights)
        for filter_, filter_of_direction, filter_of_weights in zip(normalised, direction, weights, strict=True):
            expected = filter_of_direction.numpy() * (
                np.linalg.norm(filter_of_weights.numpy()) / np.linalg.norm(filter_of_direction.numpy())
            )
            np.testing.assert_allclose(filter_.numpy(), expected, rtol=1e-5, atol=1e-7)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 2)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 4)
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.fc.weight
        self.register_buffer("table", torch.ones(2, 2))


def test_biases_batch_norm_and_buffers_stay_and_tied_weights_move_together() -> None:
    torch.manual_seed(0)
    model = Small()
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plane = random_plane(tensors, model, seed=3)
    assert set(plane.first) == set(plane.second) == {"conv.weight", "fc.weight", "tied.weight"}
    moved = plane.at(0.5, -2)
    for name, tensor in tensors.items():
        assert torch.equal(moved[name], tensor) == (name not in plane.first), name
    assert torch.equal(moved["fc.weight"], moved["tied.weight"])
    generator = torch.Generator().manual_seed(3)
    expected = [
        {
            name: filter_normalised(torch.randn(tensors[name].shape, generator=generator), tensors[name])
            for name in ("conv.weight", "fc.weight")
        }
        for _ in range(2)
    ]
    for name in ("conv.weight", "fc.weight"):
        expected_tensor = tensors[name] + 0.5 * expected[0][name] - 2 * expected[1][name]
        torch.testing.assert_close(moved[name], expected_tensor)
    first, second = (np.concatenate([d[n].numpy().ravel() for n in plane.first]) for d in (plane.first, plane.second))
    cosine = np.dot(first, second) / np.linalg.norm(first) / np.linalg.norm(second)
    assert plane.axes["cosine"] == pytest.approx(cosine, rel=1e-5)
    assert plane.axes["length.first"] == pytest.approx(np.linalg.norm(first), rel=1e-6)
    assert plane.axes["length.first"] == pytest.approx(plane.axes["length.second"], rel=1e-6)


def test_the_seed_determines_the_directions() -> None:
    model = Small()
    tensors = model.state_dict()
    first, same, different = (random_plane(tensors, model, seed) for seed in (1, 1, 2))
    assert torch.equal(first.first["conv.weight"], same.first["conv.weight"])
    assert not torch.equal(first.first["conv.weight"], first.second["conv.weight"])
    assert not torch.equal(first.first["conv.weight"], different.first["conv.weight"])
    assert random_direction({}, nn.BatchNorm1d(3), torch.Generator()) == {}
    with pytest.raises(DataError, match="no filter to move"):
        random_plane({}, nn.BatchNorm1d(3), 0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small run with five checkpoints."""
    settings = {
        "data": {"name": "digits"},
        "model": {"name": "mlp", "arguments": {"hidden": [12]}},
        "training": {"steps": 60},
        "checkpoints": {"steps": [0, 10, 20, 40]},
    }
    path = tmp_path_factory.mktemp("trajectory") / "run"
    train(TrainingConfig.model_validate(settings), path, device="cpu")
    return path


def test_positions_of_checkpoints_are_their_principal_components(directory: Path, tmp_path: Path) -> None:
    result = evaluate_plane(directory, out=tmp_path / "p", directions="pca", grid=3, splits="test", device="cpu")
    vectors = []
    for file in sorted((directory / "checkpoints").iterdir()):
        with open_checkpoint(file) as checkpoint:
            vectors.append(torch.cat([checkpoint.read(n).flatten() for n in checkpoint.names]).double().numpy())
    centred = np.stack(vectors) - np.mean(vectors, axis=0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    for i, name in enumerate(("x", "y")):
        coordinates = [mark[name] for mark in result.marks]
        np.testing.assert_allclose(np.abs(coordinates), np.abs(centred @ axes[i]), rtol=1e-5, atol=1e-6)
        share = result.axes[f"share.{('first', 'second')[i]}"]
        assert share == pytest.approx(values[i] ** 2 / (values**2).sum(), rel=1e-8)
    assert [mark["checkpoint"] for mark in result.marks][-1] == "step-000060.safetensors"
    assert len(result.points) == 9
    assert result.marks[-1]["loss"] < result.marks[0]["loss"]


def test_the_command_draws_the_run_and_prints_shares_of_variance(directory: Path, tmp_path: Path, capsys) -> None:
    words = ["plane", str(directory), "-o", str(tmp_path / "p"), "--directions", "pca", "--grid", "3"]
    assert run([*words, "--split", "test", "--device", "cpu", "--figure", str(tmp_path / "p.svg")]) == 0
    out = capsys.readouterr().out
    assert "shares of variance" in out
    assert "of a random walk as long" in out
    assert (tmp_path / "p.svg").exists()
    assert json.loads((tmp_path / "p" / "plane.json").read_text())["checkpoints"]["5"] == "step-000060.safetensors"
    assert run(["report", str(tmp_path / "p"), "-o", str(tmp_path / "r.html")]) == 0


def test_too_few_checkpoints_are_an_error(directory: Path, tmp_path: Path) -> None:
    file = directory / "checkpoints" / "step-000060.safetensors"
    with pytest.raises(UsageError, match="needs a series of at least three, found 1"):
        evaluate_plane(file, out=tmp_path / "p", directions="pca")
