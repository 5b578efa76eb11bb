"""Tests of the line and the arc between two checkpoints and of their distances, against closed forms."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from ckpt_probe.checkpoints import CheckpointMetadata, State, open_checkpoint, save_checkpoint
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.merging import interpolate
from ckpt_probe.paths.positions import barrier
from ckpt_probe.paths.shapes import distances, length, linear, path_of

A = {"w": torch.tensor([3.0, 0.0]), "n": torch.tensor(4), "same": torch.tensor([1.0, 2.0]), "zero": torch.zeros(2)}
B = {"w": torch.tensor([0.0, 3.0]), "n": torch.tensor(9), "same": torch.tensor([2.0, 4.0]), "zero": torch.ones(2)}


def slerp(a: State, b: State, alpha: float) -> State:
    return path_of("slerp", a, b)(alpha)


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        "single": torch.randn(5, 3),
        "double": torch.randn(4, dtype=torch.float64),
        "half": torch.randn(7).half(),
        "brain": torch.randn(7).bfloat16(),
        "count": torch.tensor(seed),
        "mask": torch.tensor([True, seed > 1]),
    }


@pytest.fixture
def ends(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for seed, path in enumerate(paths, start=1):
        save_checkpoint(path, state(seed), CheckpointMetadata(model="mlp", data="digits", step=seed, seed=seed))
    return paths


def read(path: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.state_dict()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_written_bit_for_bit(ends: tuple[Path, Path], tmp_path: Path, alpha: float) -> None:
    interpolate(*ends, alpha=alpha, out=tmp_path / "out")
    expected, written = read(ends[int(alpha)]), read(tmp_path / "out")
    assert all(
        torch.equal(written[name], tensor) and written[name].dtype == tensor.dtype for name, tensor in expected.items()
    )


@pytest.mark.parametrize("alpha", [0.3, 0.5, -0.5, 1.5])
def test_points_between_the_ends_are_rounded_float64_values(
    ends: tuple[Path, Path], tmp_path: Path, alpha: float
) -> None:
    summary = interpolate(*ends, alpha=alpha, out=tmp_path / "out")
    a, b, written = read(ends[0]), read(ends[1]), read(tmp_path / "out")
    for name in ("single", "double", "half", "brain"):
        exact = (1 - alpha) * a[name].double() + alpha * b[name].double()
        assert written[name].dtype == a[name].dtype
        torch.testing.assert_close(written[name].double(), exact, rtol=torch.finfo(a[name].dtype).eps, atol=1e-6)
    assert torch.equal(written["count"], a["count"])
    assert torch.equal(written["mask"], a["mask"])
    assert summary.interpolated == 4
    assert set(summary.copied) == {"count", "mask"}


def test_points_between_equal_checkpoints_equal_them(ends: tuple[Path, Path]) -> None:
    a = read(ends[0])
    for name, tensor in linear(a, a, 0.37).items():
        torch.testing.assert_close(tensor, a[name], rtol=1e-6, atol=1e-7)


def test_the_written_point_states_its_position_and_has_no_step(ends: tuple[Path, Path], tmp_path: Path) -> None:
    interpolate(*ends, alpha=0.3, out=tmp_path / "mid.safetensors")
    with open_checkpoint(tmp_path / "mid.safetensors") as checkpoint:
        assert (checkpoint.metadata.model, checkpoint.metadata.data) == ("mlp", "digits")
        assert (checkpoint.metadata.step, checkpoint.metadata.seed) == (None, None)
        position = json.loads(checkpoint.raw_metadata["ckpt_probe.path"])
    assert position == {"a": "a.safetensors", "b": "b.safetensors", "alpha": 0.3, "path": "linear"}


def test_mismatches_are_listed_together(ends: tuple[Path, Path], tmp_path: Path) -> None:
    mismatched = state(2)
    del mismatched["half"]
    mismatched |= {"extra": torch.zeros(1), "single": torch.zeros(5, 4), "double": mismatched["double"].float()}
    save_checkpoint(tmp_path / "c.safetensors", mismatched)
    with pytest.raises(DataError) as error:
        interpolate(ends[0], tmp_path / "c.safetensors", alpha=0.5, out=tmp_path / "out")
    for part in (
        "1 missing from c.safetensors: half",
        "1 extra in c.safetensors: extra",
        "1 of another shape: single (5, 3) / (5, 4)",
        "1 of another dtype (`dtype=` converts floating numbers): double F64 / F32",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_tensors_without_interpolation_are_errors(ends: tuple[Path, Path], tmp_path: Path) -> None:
    broken = state(2)
    broken["single"][0, 0] = torch.nan
    save_checkpoint(tmp_path / "nan.safetensors", broken)
    with pytest.raises(DataError, match="tensor 'single' contains NaN or infinity"):
        interpolate(ends[0], tmp_path / "nan.safetensors", alpha=0.5, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="finite number"):
        interpolate(*ends, alpha=float("nan"), out=tmp_path / "out")
    with pytest.raises(UsageError, match="is one of the input checkpoints"):
        interpolate(*ends, alpha=0.5, out=ends[0], overwrite=True)
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        interpolate(*ends, alpha=0.5, out=tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_barrier_is_the_largest_excess_over_the_chord() -> None:
    result = barrier([0, 0.25, 0.5, 1], [1.0, 1.0, 3.0, 2.0])
    assert result[""] == pytest.approx(1.5)
    assert result["_alpha"] == 0.5
    assert result["_mean"] == pytest.approx((-0.25 + 1.5) / 4)
    assert result["_over_mean"] == pytest.approx(3 - (1 + 2) / 2)
    assert barrier([0, 0.5, 1], [1.0, 0.0, 1.0])[""] == 0
    # Without a rise, the higher end is still above the mean of the ends.
    assert (barrier([0, 1], [1.0, 2.0])[""], barrier([0, 1], [1.0, 2.0])["_over_mean"]) == (0, 0.5)
    # 0.7 · 0.001 + 0.3 · 0.001 is less than 0.001 in floating-point arithmetic.
    for values in ([0.1, 0.1 * 0.7 + 0.7 * 0.3, 0.7], [0.001, 0.001, 0.001]):
        on_chord = barrier([0, 0.3, 1], values)
        assert (on_chord[""], on_chord["_alpha"], on_chord["_mean"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("alphas", "values"), [([0, 1], [1.0]), ([0.1, 1], [1.0, 2.0]), ([0, 0.5, 0.5, 1], [1.0] * 4), ([0], [1.0])]
)
def test_a_barrier_of_an_invalid_path_is_an_error(alphas: list[float], values: list[float]) -> None:
    with pytest.raises(DataError, match="a barrier needs"):
        barrier(alphas, values)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 1.0])
def test_an_arc_between_orthogonal_tensors_is_a_quarter_circle(alpha: float) -> None:
    point = slerp(A, B, alpha)
    expected = torch.tensor([3 * math.cos(alpha * math.pi / 2), 3 * math.sin(alpha * math.pi / 2)])
    assert torch.allclose(point["w"], expected, atol=1e-6)
    assert torch.allclose(point["same"], A["same"] * (1 + alpha))
    assert torch.allclose(point["zero"], torch.full((2,), alpha))
    assert point["n"] == (9 if alpha == 1 else 4)
    assert point["w"].dtype == torch.float32


def test_opposite_tensors_are_interpolated_on_the_line_with_exact_ends() -> None:
    a, b = {"w": torch.tensor([1.0, 2.0]).half()}, {"w": torch.tensor([-2.0, -4.0]).half()}
    assert torch.equal(slerp(a, b, 0.5)["w"], linear(a, b, 0.5)["w"])
    assert torch.equal(slerp(a, b, 1.0)["w"], b["w"])
    with pytest.raises(DataError, match="tensor 'w' contains NaN"):
        slerp(a, {"w": torch.tensor([math.nan, 1]).half()}, 0.5)


def test_distances_and_lengths_equal_their_closed_forms() -> None:
    distance_of = {entry["name"]: entry for entry in distances(A, B)}
    assert set(distance_of) == {"w", "same", "zero"}
    assert distance_of["w"]["distance"] == pytest.approx(3 * math.sqrt(2))
    assert distance_of["w"]["cosine"] == pytest.approx(0)
    assert distance_of["same"]["cosine"] == pytest.approx(1)
    assert distance_of["zero"]["cosine"] is None
    a, b = {"w": A["w"]}, {"w": B["w"]}
    assert length(partial(linear, a, b)) == pytest.approx(3 * math.sqrt(2), rel=1e-6)
    assert length(partial(slerp, a, b)) == pytest.approx(3 * math.pi / 2, rel=1e-3)
