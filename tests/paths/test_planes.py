"""Tests of evaluating a plane: its checkpoints, batch norm, points without a loss, resume, refusals, the command."""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckpt_probe.checkpoints import open_checkpoint, save_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.data import load_data
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models import build_model
from ckpt_probe.paths import evaluate_path, evaluate_plane

HERE = {"device": "cpu", "splits": ["test"]}


def after_the_first(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("*.safetensors"))[1:]


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> list[Path]:
    return after_the_first(train_digits(tmp_path_factory.mktemp("mlp"), [10, 30, 60]))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> list[Path]:
    model = {"name": "resnet", "arguments": {"blocks": [1], "width": 4}}
    return after_the_first(train_digits(tmp_path_factory.mktemp("resnet"), [5, 10, 20], model=model))


def record_at(records: list[dict[str, Any]], x: float, y: float) -> dict[str, Any]:
    return min(records, key=lambda record: math.hypot(record["x"] - x, record["y"] - y))


def assert_same_numbers(record: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    count = 0
    for name, value in expected.items():
        if isinstance(value, float) and name not in {"x", "y", "alpha"}:
            assert record[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
            count += 1
    assert count > 20


def test_checkpoints_have_the_numbers_of_a_path_and_equal_the_grid_points_at_their_positions(
    mlp: list[Path], tmp_path: Path
) -> None:
    result = evaluate_plane(*mlp, out=tmp_path / "plane", grid=(3, 2), margin=0, **HERE)
    path = evaluate_path(mlp[0], mlp[1], tmp_path / "path", points=3, **HERE)
    assert [mark["name"] for mark in result.marks] == ["A", "B", "C"]
    for mark, point in zip(result.marks[:2], (path.points[0], path.points[-1]), strict=True):
        assert_same_numbers(mark, point, 1e-12)
    assert result.axes["distance.ab"] == pytest.approx(path.distance, rel=1e-6)
    points = {(point["x"], point["y"]): point for point in result.points}
    marks_on_grid = [mark for mark in result.marks if (mark["x"], mark["y"]) in points]
    assert len(marks_on_grid) == 2
    for mark in marks_on_grid:
        assert_same_numbers(points[mark["x"], mark["y"]], mark, 1e-4)
    assert len(result.points) == 6
    assert result.xs[0] == 0
    assert (min(result.ys), max(result.ys)) == (0, result.marks[2]["y"])


def test_a_grid_point_has_the_numbers_of_the_model_with_its_weights(mlp: list[Path], tmp_path: Path) -> None:
    result = evaluate_plane(*mlp, out=tmp_path / "plane", grid=3, margin=0.5, **HERE)
    vectors, states = [], []
    for file in mlp:
        with open_checkpoint(file) as checkpoint:
            states.append(checkpoint.state_dict())
        vectors.append(torch.cat([tensor.double().flatten() for tensor in states[-1].values()]))
    a, b, c = vectors
    u = (b - a) / (b - a).norm()
    v = (c - a) - (c - a).dot(u) * u
    v /= v.norm()
    model = build_model("mlp", {"hidden": [16], "input_shape": [1, 8, 8], "classes": 10})
    inputs, labels = load_data("digits").split("test").batch(slice(None))
    for point in result.points[:: len(result.points) // 3]:
        theta, start, moved = a + point["x"] * u + point["y"] * v, 0, {}
        for name, tensor in states[0].items():
            moved[name] = theta[start : start + tensor.numel()].view(tensor.shape)
            start += tensor.numel()
        model.load_state_dict(moved)
        with torch.no_grad():
            logits = model(inputs).double()
        assert point["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
        assert point["accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=0.003)
        assert point["class.mir"] is not None


def test_checkpoints_of_several_dtypes_span_the_plane_of_their_numbers(mlp: list[Path], tmp_path: Path) -> None:
    lower, exact = [], []
    for file, dtype in zip(mlp, (torch.float16, torch.float32, torch.bfloat16), strict=True):
        with open_checkpoint(file) as checkpoint:
            state = {name: tensor.to(dtype) for name, tensor in checkpoint.state_dict().items()}
            for name, states in (("lower", lower), ("exact", exact)):
                states.append(tmp_path / f"{name}-{file.name}")
                stored = {key: tensor if name == "lower" else tensor.float() for key, tensor in state.items()}
                save_checkpoint(states[-1], stored, checkpoint.raw_metadata)
    results = [evaluate_plane(*files, out=tmp_path / files[0].stem, grid=2, **HERE) for files in (lower, exact)]
    assert results[0].axes == results[1].axes
    assert results[0].points == results[1].points


def test_the_grid_covers_the_checkpoints_and_the_margin(mlp: list[Path], tmp_path: Path) -> None:
    result = evaluate_plane(*mlp, out=tmp_path / "plane", grid=(2, 3), margin=0.25, **HERE)
    xs, ys = ([mark[axis] for mark in result.marks] for axis in ("x", "y"))
    for grid, span in ((result.xs, xs), (result.ys, ys)):
        extent = max(span) - min(span)
        assert (grid[0], grid[-1]) == pytest.approx((min(span) - extent / 4, max(span) + extent / 4))
    assert (len(result.xs), len(result.ys)) == (2, 3)
    assert [(p["x"], p["y"]) for p in result.points] == [(x, y) for y in result.ys for x in result.xs]


def test_files_contain_the_result_and_a_finished_plane_is_not_replaced(mlp: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "plane"
    result = evaluate_plane(*mlp, out=out, grid=2, **HERE)
    assert [json.loads(line) for line in (out / "points.jsonl").read_text().splitlines()] == result.points
    contents = json.loads((out / "plane.json").read_text())
    assert contents["checkpoints"] == dict(zip("ABC", [file.name for file in mlp], strict=True))
    assert (contents["xs"], contents["ys"], contents["axes"]) == (result.xs, result.ys, result.axes)
    assert (contents["marks"], contents["summary"]) == (result.marks, result.summary)
    [summary] = result.summary
    lowest = min(result.points, key=lambda point: point["loss"])
    assert [summary[f"lowest.{name}"] for name in ("loss", "x", "y")] == [lowest[n] for n in ("loss", "x", "y")]
    with pytest.raises(UsageError, match="contains a finished plane; `overwrite=True`"):
        evaluate_plane(*mlp, out=out, grid=2, **HERE)
    before = (out / "points.jsonl").stat().st_mtime_ns
    assert evaluate_plane(*mlp, out=out, grid=2, resume=True, **HERE) == result
    assert (out / "points.jsonl").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"grid \[2, 2\] / \[3, 2\]"):
        evaluate_plane(*mlp, out=out, grid=(3, 2), resume=True, **HERE)
    assert len(evaluate_plane(*mlp, out=out, grid=(3, 2), overwrite=True, **HERE).points) == 6


def test_an_interrupted_plane_resumes_after_its_last_record(
    mlp: list[Path], tmp_path: Path, interrupting: Callable[..., Any]
) -> None:
    options = {"grid": 3, "splits": ["test", "train"], "device": "cpu"}
    complete = evaluate_plane(*mlp, out=tmp_path / "complete", **options)
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        evaluate_plane(*mlp, out=cut, progress=interrupting(6 + 5), **options)
    assert len((cut / "points.jsonl").read_text().splitlines()) == 4  # positions are complete
    assert not (cut / "plane.json").exists()
    for changes, message in (({"grid": 2}, "grid"), ({"margin": 0.3}, r"margin 0\.2 / 0\.3")):
        with pytest.raises(UsageError, match=f"another plane .*{message}"):
            evaluate_plane(*mlp, out=cut, **{**options, **changes})
    with pytest.raises(UsageError, match=r"another plane .*\bc '"):
        evaluate_plane(*mlp[:2], mlp[0].with_name("step-000000.safetensors"), out=cut, **options)
    counter = interrupting(1000)
    assert evaluate_plane(*mlp, out=cut, progress=counter, **options) == complete
    assert counter.evaluated == 6 + 2 * 9 - 4


@pytest.mark.parametrize("evaluated", [0, 3])
def test_a_plane_without_points_accepts_another_grid(
    mlp: list[Path], tmp_path: Path, interrupting: Callable[..., Any], evaluated: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate_plane(*mlp, out=tmp_path / "plane", grid=3, progress=interrupting(evaluated), **HERE)
    assert [file.name for file in (tmp_path / "plane").iterdir()] == ["plan.json"]
    assert len(evaluate_plane(*mlp, out=tmp_path / "plane", grid=2, **HERE).points) == 4


def test_tuples_as_arguments_and_repeated_splits_are_accepted(
    mlp: list[Path], tmp_path: Path, interrupting: Callable[..., Any]
) -> None:
    options = {"data_arguments": {"classes": (0, 1, 2)}, "grid": 2, "device": "cpu", "splits": ["test", "test"]}
    counter = interrupting(1000)
    plane = evaluate_plane(*mlp, out=tmp_path / "plane", progress=counter, **options)
    assert (counter.evaluated, len(plane.points), len(plane.summary)) == (3 + 4, 4, 1)
    assert evaluate_plane(*mlp, out=tmp_path / "plane", resume=True, **options) == plane


def test_a_path_and_a_plane_do_not_replace_each_other(mlp: list[Path], tmp_path: Path) -> None:
    evaluate_path(*mlp[:2], tmp_path / "path", points=3, **HERE)
    evaluate_plane(*mlp, out=tmp_path / "plane", grid=2, **HERE)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="contains a path; choose another name"):
        evaluate_plane(*mlp, out=tmp_path / "path", grid=2, overwrite=True, **HERE)
    with pytest.raises(UsageError, match="contains a plane; choose another name"):
        evaluate_path(*mlp[:2], tmp_path / "plane", points=3, overwrite=True, **HERE)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_random_plane_around_one_checkpoint_is_reproducible_by_its_seed(mlp: list[Path], tmp_path: Path) -> None:
    options = {"directions": "random", "grid": 3, "radius": 0.5, **HERE}
    result = evaluate_plane(mlp[2], out=tmp_path / "one", seed=4, **options)
    assert result.xs == result.ys == [-0.5, 0, 0.5]
    [mark] = result.marks
    assert (mark["name"], mark["x"], mark["y"]) == ("A", 0, 0)
    assert_same_numbers(record_at(result.points, 0, 0), mark, 1e-12)
    assert len({point["loss"] for point in result.points}) == 9
    assert abs(result.axes["cosine"]) < 0.5
    assert evaluate_plane(mlp[2], out=tmp_path / "same", seed=4, **options) == result
    with_other_seed = evaluate_plane(mlp[2], out=tmp_path / "with_other_seed", seed=5, **options)
    assert with_other_seed.points[0]["loss"] != result.points[0]["loss"]


def test_statistics_are_recomputed_on_the_grid_and_kept_at_checkpoints(resnet: list[Path], tmp_path: Path) -> None:
    results = {
        handling: evaluate_plane(*resnet, out=tmp_path / handling, grid=(3, 2), margin=0, batchnorm=handling, **HERE)
        for handling in ("recompute", "interpolate")
    }
    for handling, result in results.items():
        assert {point["batchnorm"] for point in result.points} == {handling}
        assert {mark["batchnorm"] for mark in result.marks} == {"own"}
    recomputed, interpolated = (record_at(results[h].points, 0, 0) for h in ("recompute", "interpolate"))
    assert_same_numbers(interpolated, results["interpolate"].marks[0], 1e-9)
    assert recomputed["loss"] != pytest.approx(interpolated["loss"], rel=1e-6)
    assert results["recompute"].marks == results["interpolate"].marks


@pytest.mark.parametrize(("radius", "features"), [(1e25, True), (1e39, False)])
def test_points_where_the_network_overflows_have_a_reason_in_place_of_a_loss(
    mlp: list[Path],
    tmp_path: Path,
    radius: float,
    features: bool,
    interrupting: Callable[..., Any],
) -> None:
    progress_log = interrupting(1000)
    options = {"directions": "random", "grid": 3, "radius": radius, "progress": progress_log, **HERE}
    result = evaluate_plane(mlp[2], out=tmp_path / "far", **options)
    with_loss = [point for point in result.points if point["loss"] is not None]
    assert [(point["x"], point["y"]) for point in with_loss] == [(0, 0)]
    for point in result.points:
        if point not in with_loss:
            assert (point["accuracy"], point["nc4.disagreement"]) == (None, None)
            assert (point["class.mir"] is not None) == features
            assert "overflow to infinity" in point["missing"]
            assert list(point) == list(with_loss[0])
    assert result.summary[0]["without_loss"] == 8
    assert progress_log.messages[0].startswith("test: 8 of 9 points have no loss (")


def test_points_with_dead_features_have_a_loss(mlp: list[Path], tmp_path: Path) -> None:
    with open_checkpoint(mlp[2]) as checkpoint:
        state, metadata = checkpoint.state_dict(), checkpoint.raw_metadata
    for name, layer in (("b", "1.bias"), ("c", "3.bias")):
        moved = {**state, layer: state[layer] - torch.arange(1, len(state[layer]) + 1) / 10}
        save_checkpoint(tmp_path / f"{name}.safetensors", moved, metadata)
    files = mlp[2], tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    result = evaluate_plane(*files, out=tmp_path / "plane", grid=2, margin=100, **HERE)
    dead = [point for point in result.points if point["x"] > 0]
    for point in dead:
        assert point["class.mir"] is None
        assert "zero" in point["missing"]
        assert point["loss"] is not None
        assert point["accuracy"] is not None
    assert len(dead) == 2


def test_invalid_planes_are_refused(mlp: list[Path], resnet: list[Path], tmp_path: Path) -> None:
    a, b, c = mlp
    out = tmp_path / "plane"
    for files, options, message in (
        ((a, b), {}, "needs three checkpoints"),
        ((a,), {}, "needs three checkpoints"),
        ((a, b, c), {"directions": "random"}, "omit B and C"),
        ((a, b, c), {"grid": 1}, "at least 2 points"),
        ((a, b, c), {"grid": (5, 1)}, "at least 2 points"),
        ((a, b, c), {"margin": -0.1}, "expected a margin of at least 0"),
        ((a, b, c), {"radius": 2}, "seed and radius need directions random"),
        ((a, b, c), {"batchnorm": "none"}, "recompute or interpolate"),
        ((a,), {"directions": "straight"}, "directions: expected random"),
        ((a,), {"directions": "random", "radius": 0}, "a radius above 0"),
        ((a,), {"directions": "random", "margin": 0.5}, "margin needs three"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate_plane(*files, out=out, **options, **HERE)
    with pytest.raises(DataError, match=r"step-000010\.safetensors.*A and B have the same weights"):
        evaluate_plane(a, a, c, out=out, **HERE)
    with pytest.raises(DataError, match="do not have the same tensors"):
        evaluate_plane(a, b, resnet[0], out=out, **HERE)
    assert run(["interpolate", str(a), str(c), "--alpha", "0.4", "--out", str(tmp_path / "mid.safetensors")]) == 0
    with pytest.raises(DataError, match=r"mid\.safetensors.*lie on one line"):
        evaluate_plane(a, tmp_path / "mid.safetensors", c, out=out, **HERE)
    assert not out.exists()


def test_the_command_prints_and_draws_the_plane(
    mlp: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plane", *map(str, mlp), "-o", str(tmp_path / "plane"), "--split", "test", "--device", "cpu"]
    assert run([*words, "--grid", "5x3"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split("│")[1] for line in out.splitlines() if "│" in line]
    assert [len(row) for row in rows] == [10, 10, 10]
    assert sorted("".join(rows).translate(dict.fromkeys(map(ord, " ░▒▓█")))) == ["A", "B", "C"]
    assert "█" in "".join(rows)
    assert "lowest loss 0." in out
    assert "angle at A" in out
    assert err == f"{tmp_path / 'plane'}: 15 records, one per point and split\n"
    assert run([*words, "--grid", "3x5"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run([*words, "--grid", "5x3", "--json"]) == 0
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(points) == 15
    pytest.importorskip("matplotlib")
    assert run([*words, "--grid", "5x3", "--csv", "--figure", str(tmp_path / "plane.svg")]) == 0
    assert (tmp_path / "plane.svg").stat().st_size > 1000
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["class.mir"]) for row in rows] == [point["class.mir"] for point in points]
    assert list(rows[0])[:3] == ["x", "y", "split"]
    (tmp_path / "plane.svg").write_text("an old one")
    assert run([*words, "--grid", "5x3", "--json", "--figure", str(tmp_path / "plane.svg")]) == 2
    assert (tmp_path / "plane.svg").read_text() == "an old one"
    assert run([*words, "--grid", "5x3", "--json", "--figure", str(tmp_path / "plane.svg"), "--overwrite"]) == 0
    assert "svg" in (tmp_path / "plane.svg").read_text()
    capsys.readouterr()
    assert run(["plane", str(mlp[0]), "-o", str(tmp_path / "r"), "--grid", "3"]) == 0
    assert "cosine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--grid", "1"],
        ["--grid", "3x"],
        ["--grid", "a"],
        ["--json", "--csv"],
        ["--batchnorm-samples", "9", "--set", "batchnorm=interpolate"],
    ],
)
def test_wrong_use_of_the_command_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plane", "a", "b", "c", "-o", "out", *words]) == 2
    assert words[0] in capsys.readouterr().err
