"""Tests of the numbers of motion against formulas on the parameters."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckpt_probe as cp
from ckpt_probe.checkpoints import open_series
from ckpt_probe.progress import NullProgress
from ckpt_probe.trajectories import stream
from ckpt_probe.trajectories.layout import WeightOptions
from ckpt_probe.trajectories.motion import distances_of, gram_from_first, trajectory_of


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_every_number_equals_its_formula(states, series: Callable[..., Path], vectors: np.ndarray, suffix: str) -> None:
    records = cp.weights(series(states, suffix=suffix), only="motion")
    steps = np.diff(vectors, axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    for t, record in enumerate(records):
        assert record["motion.norm"] == pytest.approx(np.linalg.norm(vectors[t]), rel=1e-12)
        from_first = np.linalg.norm(vectors[t] - vectors[0])
        assert record["motion.from_first"] == pytest.approx(from_first / np.linalg.norm(vectors[0]), rel=1e-12)
        if t:
            assert record["motion.step"] == pytest.approx(lengths[t - 1], rel=1e-12)
            assert record["motion.path"] == pytest.approx(lengths[:t].sum(), rel=1e-12)
            assert record["motion.path_ratio"] == pytest.approx(lengths[:t].sum() / from_first, rel=1e-12)
            changed = np.mean(np.sign(vectors[t]) * np.sign(vectors[t - 1]) < 0)
            assert record["motion.sign_changes"] == pytest.approx(changed, rel=1e-12)
        if t > 1:
            cosine = steps[t - 1] @ steps[t - 2] / lengths[t - 1] / lengths[t - 2]
            assert record["motion.cosine"] == pytest.approx(cosine, rel=1e-12)
    assert "the first checkpoint" in records[0]["missing"]
    assert records[0]["motion.step"] is None


def test_precisions_that_change_within_a_series(states, series: Callable[..., Path]) -> None:
    dtypes = (torch.bfloat16, torch.float64, torch.float16, torch.float32, torch.bfloat16)
    kept = [
        {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        for state, dtype in zip(states, dtypes, strict=False)
    ]
    kept[2]["3.weight"][:2] = 0.0
    kept[4]["3.weight"][1, 1] = torch.nan
    records = list(cp.weights(series(kept, suffix=".safetensors"), only="motion", by="tensor"))
    tensors = [state["3.weight"].double().numpy() for state in kept]
    found = {record["step"]: record for record in records if record["tensor"] == "3.weight"}
    for before, after, step in zip(tensors, tensors[1:], (10, 20, 40), strict=False):
        assert found[step]["motion.step"] == pytest.approx(np.linalg.norm(after - before), rel=1e-12)
        changed = np.mean(np.sign(after) * np.sign(before) < 0)
        assert found[step]["motion.sign_changes"] == pytest.approx(changed, rel=1e-12)
    assert found[60]["missing"] == "motion.*: NaN or infinite weights"


def test_numbers_of_tensors_and_blocks_add_up_to_those_of_the_network(states, series: Callable[..., Path]) -> None:
    path = series(states)
    tensors = [state["3.weight"].double().numpy() for state in states]
    for record in cp.weights(path, only="motion", by="tensor"):
        if record["tensor"] == "3.weight" and record["step"] == 40:
            assert record["motion.step"] == pytest.approx(np.linalg.norm(tensors[3] - tensors[2]), rel=1e-12)
    blocks = [r for r in cp.weights(path, only=["motion"], by="block") if r["step"] == 40]
    assert [record["block"] for record in blocks] == ["0", "1", "3", "5"]
    of_network = next(r for r in cp.weights(path, only="motion") if r["step"] == 40)
    squares = sum(record["motion.step"] ** 2 for record in blocks)
    assert of_network["motion.step"] == pytest.approx(math.sqrt(squares), rel=1e-12)


def test_coordinates_of_the_trajectory_are_its_principal_components(
    states, series: Callable[..., Path], vectors: np.ndarray
) -> None:
    records = list(cp.weights(series(states), only="motion"))
    _, values, axes = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    for i in (0, 1):
        coordinates = np.array([record[f"motion.pca_{i + 1}"] for record in records])
        expected = (vectors - vectors.mean(axis=0)) @ axes[i]
        np.testing.assert_allclose(np.abs(coordinates), np.abs(expected), rtol=1e-8, atol=1e-10)
        assert records[0][f"motion.pca_share_{i + 1}"] == pytest.approx(values[i] ** 2 / (values**2).sum(), rel=1e-9)


def test_a_long_random_walk_has_the_published_shares() -> None:
    plane = trajectory_of(np.eye(2000))
    assert plane is not None
    assert plane.shares == pytest.approx((6 / math.pi**2, 6 / (4 * math.pi**2)), rel=1e-3)
    assert plane.shares == pytest.approx(plane.walk_shares, rel=1e-9)


def test_distances_of_small_steps_far_from_the_start_are_accurate() -> None:
    random = np.random.default_rng(0)
    points = np.cumsum(random.normal(size=(6, 50)), axis=0)
    points[4:] = points[3] + 1e-9 * random.normal(size=(2, 50))
    steps = np.diff(points, axis=0)
    gram = gram_from_first(steps @ steps.T)
    moved = points - points[0]
    np.testing.assert_allclose(gram, moved @ moved.T, rtol=1e-10, atol=1e-12)
    distances = distances_of(steps @ steps.T)
    expected = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.testing.assert_allclose(distances[:3], expected[:3], rtol=1e-12)
    assert distances[4, 5] == pytest.approx(expected[4, 5], rel=1e-6)


def test_nan_in_one_tensor_of_one_step_leaves_the_other_steps(
    states, series: Callable[..., Path], vectors: np.ndarray
) -> None:
    damaged = [dict(state) for state in states]
    damaged[4]["3.weight"] = states[4]["3.weight"].clone()
    damaged[4]["3.weight"][0, 0] = torch.nan
    records = list(cp.weights(series(damaged), only="motion,audit"))
    assert records[4]["motion.norm"] is None
    assert "NaN or infinite weights" in records[4]["missing"]
    assert records[4]["audit.nan"] == 1
    assert "step 60: NaN in 3.weight" in records[4]["audit.findings"]
    assert records[5]["motion.step"] == pytest.approx(np.linalg.norm(vectors[5] - vectors[3]), rel=1e-12)
    assert records[5]["motion.sign_changes"] is None
    assert "motion.sign_changes: the checkpoint before has NaN or infinite weights" in records[5]["missing"]
    assert records[7]["motion.step"] == pytest.approx(np.linalg.norm(vectors[7] - vectors[6]), rel=1e-12)


def test_sketches_are_within_their_error(states, series: Callable[..., Path]) -> None:
    path = series(states)
    exact = list(cp.weights(path, only="motion"))
    for record, exact_record in zip(cp.weights(path, only="motion", sketch=True, cache=True), exact, strict=True):
        for name in ("motion.norm", "motion.step", "motion.from_first"):
            if exact_record[name] is not None:
                assert record[name] == pytest.approx(exact_record[name], rel=0.1)
        assert record["motion.sign_changes"] is None


def test_the_trace_of_a_tensor_is_that_of_its_entries_in_blocks_and_tiles_of_any_size(
    states, series: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    members, name = open_series(series(states[:4], suffix=".safetensors")), "0.weight"
    values = torch.stack([state[name].flatten() for state in states[:4]]).double().numpy()
    for limit, least in (("SMALLEST", 128), ("LARGEST", 300), ("TILE", 4 * 64)):
        monkeypatch.setattr(stream, limit, least)
    [(_, trace)] = stream.traces(members, [name], WeightOptions())
    steps = np.diff(values, axis=0)
    assert trace["entries"] == values.shape[1]
    assert trace["squares"] == pytest.approx(np.square(values).sum(axis=1), rel=1e-12)
    assert trace["steps"] == pytest.approx(steps @ steps.T, rel=1e-12)
    assert trace["signs"].tolist() == (values[1:] * values[:-1] < 0).sum(axis=1).tolist()
    assert trace["lowest"].tolist() == values.min(axis=1).tolist()
    assert trace["highest"].tolist() == values.max(axis=1).tolist()
    assert len(set(trace["digests"].tolist())) == 4


def test_entries_are_added_to_all_sums_of_a_sketch_with_random_signs() -> None:
    count = 16 * stream.PROJECTIONS
    numbers = np.random.default_rng(1).normal(size=count)
    assert np.count_nonzero(stream._projected(numbers, "w", 0, count)) == stream.PROJECTIONS
    sums = stream._projected(np.ones(count), "w", 0, count)
    assert abs(sums[::2].mean()) < 1
    assert np.square(sums).sum() == pytest.approx(count, rel=0.1)


def test_the_trace_of_doubles_has_their_precision_and_leaves_out_entries_that_are_not_finite(
    series: Callable[..., Path],
) -> None:
    values = 1 + 1e-12 * np.random.default_rng(0).normal(size=(3, 50))
    values[1, 4], values[1, 5], values[2, 5] = math.nan, math.inf, -math.inf
    kept = [{"w": torch.from_numpy(row)} for row in values]
    [(_, trace)] = stream.traces(open_series(series(kept, suffix=".safetensors")), ["w"], WeightOptions())
    finite = np.where(np.isfinite(values), values, 0)
    assert trace["squares"] == pytest.approx(np.square(finite).sum(axis=1), rel=1e-14)
    assert trace["broken"].tolist() == [[0, 0], [1, 1], [0, 1]]
    assert trace["lowest"][0] == values[0].min()
    assert trace["highest"][0] == values[0].max()


def test_fingerprints_are_sums_of_words_with_odd_factors_of_64_bits() -> None:
    words = np.random.default_rng(0).integers(0, 2**64, (2, 300), dtype=np.uint64)
    factors = [int(factor) for factor in stream._factors(300)]
    assert len(set(factors)) == 300
    assert all(factor % 2 for factor in factors)
    assert len({factor >> 56 for factor in factors}) > 150
    digests = {start: [int(value) for value in stream.digest(words.view(np.uint8), start)] for start in (0, 4096)}
    sums = [sum(int(a) * b for a, b in zip(row, factors, strict=True)) for row in words]
    for start, of_start in digests.items():
        seed = (start * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64 | 1
        assert of_start == [total * seed % 2**64 for total in sums]


class Tasks(NullProgress):
    """Progress that adds up what every task reports."""

    def __init__(self) -> None:
        self.done: dict[tuple[str, int | None, str], int] = {}

    @contextmanager
    def task(self, name: str, total: int | None, unit: str = "") -> Iterator[Any]:
        """Yield a task whose amounts are added up."""
        key = (name, total, unit)
        self.done[key] = 0

        class Bar(NullProgress):
            def advance(_, amount: int = 1, **facts: object) -> None:
                self.done[key] += amount

        yield Bar()


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_of_measurements_counts_each_tensor_and_each_sketch_once(
    states, series: Callable[..., Path], workers: int
) -> None:
    progress, path = Tasks(), series(states[:4])
    for sketch in (False, True):
        list(cp.weights(path, only="motion", workers=workers, sketch=sketch, progress=progress))
    assert progress.done == {("weights", 10, "tensors"): 10, ("sketches", 4, "checkpoints"): 4,
                             ("checkpoints", 4, "checkpoints"): 4}  # fmt: skip


@pytest.mark.parametrize("start", ["n" * 70_000, "n\0"])
def test_names_that_an_archive_cannot_hold_are_cached(
    states, series: Callable[..., Path], user_cache: Path, start: str
) -> None:
    path = series([{f"{start}{name}": tensor for name, tensor in state.items()} for state in states[:2]])
    records = list(cp.weights(path, only="spectra", by="tensor", cache=True))
    assert list(cp.weights(path, only="spectra", by="tensor", cache=True)) == records
    assert list((user_cache / "trajectories").glob("*.npz"))


def test_workers_and_the_cache_give_equal_numbers(states, series: Callable[..., Path], user_cache: Path) -> None:
    path = series(states[:4])
    alone = list(cp.weights(path, only="motion,spectra", cache=True))
    assert list(cp.weights(path, only="motion,spectra", cache=True)) == alone
    assert list((user_cache / "trajectories").glob("*.npz"))
    shared = list(cp.weights(path, only="motion,spectra", workers=2))
    for single_record, shared_record in zip(alone, shared, strict=True):
        assert single_record == {
            name: pytest.approx(v, rel=1e-12) if isinstance(v, float) else v for name, v in shared_record.items()
        }
