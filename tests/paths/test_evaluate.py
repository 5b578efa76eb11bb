"""Tests of evaluating a path: its ends equal extract and analyze; batch norm, resume, and refusals."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ckpt_probe.analysis import analyze
from ckpt_probe.checkpoints import open_checkpoint, save_checkpoint
from ckpt_probe.data import load_data
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import extract_series
from ckpt_probe.models import build_model
from ckpt_probe.paths import evaluate_path
from ckpt_probe.paths import survey as survey_module
from ckpt_probe.paths.batchnorm import has_batchnorm, recompute
from ckpt_probe.paths.shapes import linear
from ckpt_probe.progress import NullProgress, Task

HERE = {"device": "cpu"}


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> Path:
    return train_digits(tmp_path_factory.mktemp("mlp"), [10, 60]) / "checkpoints"


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> Path:
    model = {"name": "resnet", "arguments": {"blocks": [1], "width": 4}}
    return train_digits(tmp_path_factory.mktemp("resnet"), [10, 20], model=model) / "checkpoints"


def ends(run: Path) -> tuple[Path, Path]:
    files = sorted(run.glob("*.safetensors"))
    return files[1], files[-1]


def test_the_ends_have_the_numbers_of_extract_and_analyze(mlp: Path, tmp_path: Path) -> None:
    result = evaluate_path(*ends(mlp), tmp_path / "path", points=3, **HERE)
    extract_series(mlp, tmp_path / "dumps", **HERE)
    analyzed = {(r["step"], r["split"]): r for r in analyze(tmp_path / "dumps")}
    compared = 0
    for point in result.points:
        if point["alpha"] == 0.5:
            continue
        expected = analyzed[(10 if point["alpha"] == 0 else 60, point["split"])]
        for name, value in expected.items():
            if isinstance(value, float):
                assert point[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
                compared += 1
    assert compared > 4 * 20


def test_the_middle_has_the_numbers_of_the_model_with_interpolated_weights(mlp: Path, tmp_path: Path) -> None:
    result = evaluate_path(*ends(mlp), tmp_path / "path", points=3, splits=["test"], **HERE)
    states = []
    for end in ends(mlp):
        with open_checkpoint(end) as checkpoint:
            states.append(checkpoint.state_dict())
    model = build_model("mlp", {"hidden": [16], "input_shape": [1, 8, 8], "classes": 10})
    model.load_state_dict(linear(*states, 0.5))
    inputs, labels = load_data("digits").split("test").batch(slice(None))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(inputs).double(), labels).item()
    middle = next(p for p in result.points if p["alpha"] == 0.5)
    assert middle["loss"] == pytest.approx(loss, rel=1e-6)
    [summary] = result.summary
    losses = [p["loss"] for p in result.points]
    assert summary["barrier.loss"] == pytest.approx(max(0, losses[1] - (losses[0] + losses[2]) / 2), abs=1e-12)
    assert summary["barrier.loss_over_mean"] == pytest.approx(max(losses) - (losses[0] + losses[2]) / 2, abs=1e-12)
    errors = [1 - p["accuracy"] for p in result.points]
    assert summary["barrier.error_over_mean"] == pytest.approx(max(errors) - (errors[0] + errors[2]) / 2, abs=1e-12)


def test_files_contain_the_records_and_a_finished_path_is_not_replaced(mlp: Path, tmp_path: Path) -> None:
    out = tmp_path / "path"
    result = evaluate_path(*ends(mlp), out, points=3, **HERE)
    assert [json.loads(line) for line in (out / "points.jsonl").read_text().splitlines()] == result.points
    contents = json.loads((out / "path.json").read_text())
    assert contents["summary"] == result.summary
    assert (contents["from"], contents["plan"]["points"]) == ("step-000010.safetensors", 3)
    with pytest.raises(UsageError, match="contains a finished path; `overwrite=True`"):
        evaluate_path(*ends(mlp), out, points=3, **HERE)
    assert len(evaluate_path(*ends(mlp), out, points=4, overwrite=True, **HERE).points) == 8


def test_an_interrupted_path_resumes_after_its_last_point(
    mlp: Path, tmp_path: Path, interrupting: Callable[..., Any]
) -> None:
    complete = evaluate_path(*ends(mlp), tmp_path / "complete", points=5, splits=["test"], **HERE)
    with pytest.raises(KeyboardInterrupt):
        evaluate_path(*ends(mlp), tmp_path / "cut", points=5, splits=["test"], progress=interrupting(3), **HERE)
    assert not (tmp_path / "cut" / "path.json").exists()
    with pytest.raises(UsageError, match=r"another path .*points 5 / 7"):
        evaluate_path(*ends(mlp), tmp_path / "cut", points=7, splits=["test"], **HERE)
    counter = interrupting(100)
    again = evaluate_path(*ends(mlp), tmp_path / "cut", points=5, splits=["test"], progress=counter, **HERE)
    assert counter.evaluated == 2
    assert again == complete


def test_batchnorm_is_recomputed_between_the_ends_or_interpolated(resnet: Path, tmp_path: Path) -> None:
    results = {
        handling: evaluate_path(
            *ends(resnet), tmp_path / handling, points=3, splits=["test"], batchnorm=handling, **HERE
        )
        for handling in ("recompute", "interpolate")
    }
    for handling, result in results.items():
        assert [point["batchnorm"] for point in result.points] == ["own", handling, "own"]
    losses = {handling: [point["loss"] for point in result.points] for handling, result in results.items()}
    assert losses["recompute"][0] == losses["interpolate"][0]
    assert losses["recompute"][2] == losses["interpolate"][2]
    assert losses["recompute"][1] != pytest.approx(losses["interpolate"][1], rel=1e-6)


def test_recomputed_statistics_equal_those_of_the_data() -> None:
    split = load_data("digits").split("train")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10))
    assert has_batchnorm(model)
    recompute(model, split, samples=512)
    layer = model[1]
    assert isinstance(layer, nn.BatchNorm1d)
    inputs, _ = split.batch(slice(0, 512))
    assert layer.running_mean is not None
    torch.testing.assert_close(layer.running_mean, inputs.flatten(1).mean(dim=0), rtol=1e-5, atol=1e-6)
    assert layer.momentum == 0.1
    assert not any(module.training for module in model.modules())
    assert not has_batchnorm(nn.Sequential(nn.Linear(2, 2)))


def test_recomputed_statistics_of_instance_normalisation_are_those_of_the_instances() -> None:
    split = load_data("digits").split("train")
    model = nn.Sequential(nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten(), nn.Linear(64, 10))
    assert has_batchnorm(model)
    recompute(model, split, samples=300)
    images, layer = split.batch(slice(0, 300))[0].double(), model[0]
    assert isinstance(layer, nn.InstanceNorm2d)
    np.testing.assert_allclose(layer.running_mean, images.mean(dim=(2, 3)).mean(dim=0), rtol=1e-5)
    np.testing.assert_allclose(layer.running_var, images.flatten(2).var(dim=2).mean(dim=0), rtol=1e-5)


@pytest.mark.parametrize("samples", [2, 257, 258, 600])
def test_a_small_last_batch_has_the_weight_of_its_samples(samples: int) -> None:
    split = load_data("digits").split("train")
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
    recompute(model, split, samples=samples)
    inputs, _ = split.batch(slice(0, samples))
    rows, layer = inputs.flatten(1).double().numpy(), model[1]
    assert isinstance(layer, nn.BatchNorm1d)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    np.testing.assert_allclose(layer.running_mean, rows.mean(axis=0), rtol=1e-5, atol=1e-6)
    # The variance is averaged over batches around their own means, which is close to that of all samples.
    np.testing.assert_allclose(layer.running_var, rows.var(axis=0, ddof=1), rtol=0.05, atol=1e-3)
    with pytest.raises(UsageError, match="one sample has no batch-norm statistics"):
        recompute(model, split, samples=1)


@pytest.mark.parametrize("passes", [1, 2])
def test_features_and_logits_stay_in_memory_if_both_fit(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: int
) -> None:
    samples, totals = len(load_data("digits").split("test")), []
    monkeypatch.setattr(survey_module, "CACHE_BYTES", samples * (16 + 10) * 4 - (passes - 1))

    class Listening(NullProgress):
        def task(self, name: str, total: int | None, unit: str = "") -> AbstractContextManager[Task]:
            totals.extend([total] if name == "test" else [])
            return super().task(name, total, unit)

    evaluate_path(*ends(mlp), tmp_path / "path", points=3, splits=["test"], progress=Listening(), **HERE)
    assert totals == [passes * samples] * 3


def test_invalid_paths_are_refused(mlp: Path, resnet: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="do not have the same tensors"):
        evaluate_path(ends(mlp)[0], ends(resnet)[0], tmp_path / "p", **HERE)
    with pytest.raises(UsageError, match="at least 3 points"):
        evaluate_path(*ends(mlp), tmp_path / "p", points=2, **HERE)
    with pytest.raises(DataError, match="no split 'validation'"):
        evaluate_path(*ends(mlp), tmp_path / "p", splits=["validation"], **HERE)
    assert not (tmp_path / "p").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="a file; expected a directory for the path"):
        evaluate_path(*ends(mlp), tmp_path / "file", **HERE)


def changed_copy(path: Path, target: Path, **tensors: torch.Tensor | None) -> Path:
    """Write a copy of a checkpoint with some tensors replaced or, for None, left out."""
    with open_checkpoint(path) as checkpoint:
        state = {n: t for n, t in {**checkpoint.state_dict(), **tensors}.items() if t is not None}
        save_checkpoint(target, state, checkpoint.raw_metadata)
    return target


def test_checkpoints_without_a_line_between_them_are_errors(mlp: Path, tmp_path: Path) -> None:
    a, b = ends(mlp)
    with open_checkpoint(a) as checkpoint:
        weight = checkpoint.read("1.weight")
    narrower = changed_copy(b, tmp_path / "other.safetensors", **{"1.weight": weight[:8]})
    with pytest.raises(DataError, match=r"1 of another shape: 1\.weight \(16, 64\) / \(8, 64\)"):
        evaluate_path(a, narrower, tmp_path / "p", **HERE)
    # safetensors stores a tensor shared by two names once, under either name.
    tied = changed_copy(b, tmp_path / "tied.safetensors", **{"3.weight": None})
    with pytest.raises(DataError, match=r"1 missing from tied\.safetensors: 3\.weight"):
        evaluate_path(a, tied, tmp_path / "p", **HERE)
    for dtype, message in (
        (torch.float8_e4m3fn, r"a8\.safetensors: tensor '1\.weight' is F8_E4M3, which cannot be averaged \(1 such\)"),
        (
            torch.int8,
            r"a8\.safetensors: tensor '1\.weight' is quantised \(I8, .*\), which cannot be averaged \(1 such\)",
        ),
    ):
        files = tmp_path / "a8.safetensors", tmp_path / "b8.safetensors"
        for source, file in zip((a, b), files, strict=True):
            file.unlink(missing_ok=True)
            changed_copy(source, file, **{"1.weight": weight.to(dtype)})
        with pytest.raises(DataError, match=message):
            evaluate_path(*files, tmp_path / "p", **HERE)
    assert not (tmp_path / "p").exists()
    dead = [
        changed_copy(end, tmp_path / f"dead-{end.name}", **{"1.weight": -weight * 0, "1.bias": torch.zeros(16)})
        for end in (a, b)
    ]
    with pytest.raises(DataError, match=r"dead-.*alpha 0, train: .*zero length"):
        evaluate_path(*dead, tmp_path / "p", **HERE)
    assert [file.name for file in (tmp_path / "p").iterdir()] == ["plan.json"]
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(DataError, match="no checkpoint found in this directory"):
        evaluate_path(a, folder, tmp_path / "q", **HERE)


def test_a_dead_network_between_the_ends_has_a_loss_and_a_reason_for_missing_metrics(mlp: Path, tmp_path: Path) -> None:
    a, b = ends(mlp)
    with open_checkpoint(a) as checkpoint:
        opposite = {name: -checkpoint.read(name) for name in checkpoint.names}
    negated = changed_copy(b, tmp_path / "opposite.safetensors", **opposite)
    result = evaluate_path(a, negated, tmp_path / "p", points=3, splits=["test"], **HERE)
    first, middle, last = result.points
    assert middle["loss"] == pytest.approx(np.log(10), rel=1e-6)
    assert middle["class.mir"] is None
    assert "zero length" in middle["missing"]
    assert list(middle) == list(first) == list(last)
    excess = middle["loss"] - (first["loss"] + last["loss"]) / 2
    assert result.summary[0]["barrier.loss"] == pytest.approx(max(0, excess), abs=1e-9)


def test_input_files_are_not_overwritten(mlp: Path, tmp_path: Path) -> None:
    out = tmp_path / "path"
    evaluate_path(*ends(mlp), out, points=3, splits=["test"], align="permutation", **HERE)
    aligned = out / "aligned.safetensors"
    with pytest.raises(UsageError, match=r"aligned\.safetensors: this path reads the file and would overwrite it"):
        evaluate_path(ends(mlp)[0], aligned, out, points=3, overwrite=True, **HERE)
    assert aligned.exists()
    assert (out / "path.json").exists()


def test_tuples_as_arguments_and_repeated_splits_are_accepted(mlp: Path, tmp_path: Path) -> None:
    options = {"data_arguments": {"classes": (0, 1, 2)}, "points": 3, "device": "cpu", "splits": ["test", "test"]}
    path = evaluate_path(*ends(mlp), tmp_path / "path", **options)
    assert [point["alpha"] for point in path.points] == [0, 0.5, 1]
    assert evaluate_path(*ends(mlp), tmp_path / "path", resume=True, **options) == path


def test_resuming_a_finished_path_returns_it_and_other_options_are_refused(
    mlp: Path, tmp_path: Path, interrupting: Callable[..., Any]
) -> None:
    out, options = tmp_path / "path", {"points": None, "splits": ["test"], "align": "activations", **HERE}
    result = evaluate_path(*ends(mlp), out, **options)
    counter = interrupting(0)
    assert evaluate_path(*ends(mlp), out, resume=True, progress=counter, **options) == result
    assert counter.evaluated == 0
    assert result.alignment is not None
    assert result.alignment["method"] == "activations"
    for changes, message in (({"points": 7}, "points 'auto' / 7"), ({"align": None}, "align 'activations' / None")):
        with pytest.raises(UsageError, match=f"another path .*{message}"):
            evaluate_path(*ends(mlp), out, resume=True, **{**options, **changes})
    with pytest.raises(UsageError, match="exclude each other"):
        evaluate_path(*ends(mlp), out, resume=True, overwrite=True, **options)


def test_a_path_that_failed_before_its_first_point_can_be_started_again(mlp: Path, tmp_path: Path) -> None:
    specification = tmp_path / "groups.json"
    specification.write_text("{}}")
    with pytest.raises(DataError, match="not a file of permutation groups"):
        evaluate_path(*ends(mlp), tmp_path / "path", points=3, align="permutation", align_spec=specification, **HERE)
    assert evaluate_path(*ends(mlp), tmp_path / "path", points=3, splits=["test"], align="permutation", **HERE).points


def test_ends_of_two_precisions_have_the_path_of_the_wider_one(mlp: Path, tmp_path: Path) -> None:
    first, last = ends(mlp)
    with open_checkpoint(last) as checkpoint:
        state, metadata = checkpoint.state_dict(), checkpoint.raw_metadata
    half = {name: tensor.bfloat16() for name, tensor in state.items()}
    losses = []
    for name, saved in (("half", half), ("wide", {name: tensor.float() for name, tensor in half.items()})):
        save_checkpoint(tmp_path / f"{name}.safetensors", saved, metadata)
        for number, files in enumerate([(first, tmp_path / f"{name}.safetensors")] * 2):
            a, b = files[:: 1 - 2 * number]
            result = evaluate_path(a, b, tmp_path / f"{name}-{number}", points=3, splits="test", **HERE)
            losses.append([point["loss"] for point in result.points][:: 1 - 2 * number])
    assert losses[0] == losses[2]
    assert losses[1] == losses[3]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_nan_is_an_error_that_names_the_file_and_the_tensor(mlp: Path, tmp_path: Path) -> None:
    with open_checkpoint(ends(mlp)[0]) as checkpoint:
        state, metadata = checkpoint.state_dict(), checkpoint.raw_metadata
    state["1.bias"] = torch.full_like(state["1.bias"], torch.nan)
    save_checkpoint(tmp_path / "nan.safetensors", state, metadata)
    with pytest.raises(DataError, match=r"nan\.safetensors.*'1\.bias' contains NaN"):
        evaluate_path(tmp_path / "nan.safetensors", ends(mlp)[1], tmp_path / "p", **HERE)


def test_an_arc_extends_beyond_the_ends_and_auto_points_are_refined(mlp: Path, tmp_path: Path) -> None:
    a, b = ends(mlp)
    result = evaluate_path(a, b, tmp_path / "arc", path="slerp", points=5, span=(-0.5, 1.5), splits=["test"], **HERE)
    assert [point["alpha"] for point in result.points] == [-0.5, 0, 0.5, 1, 1.5]
    contents = json.loads((tmp_path / "arc" / "path.json").read_text())
    assert contents["plan"]["path"] == "slerp"
    assert contents["distance"] == pytest.approx(result.distance)
    assert result.length > result.distance
    with open_checkpoint(a) as first, open_checkpoint(b) as second:
        squared_differences = [(first.read(n).double() - second.read(n).double()).square().sum() for n in first.names]
        assert {entry["name"] for entry in contents["distances"]} == set(first.names)
    assert result.distance == pytest.approx(float(torch.stack(squared_differences).sum().sqrt()), rel=1e-9)
    auto = evaluate_path(a, b, tmp_path / "auto", points=None, splits=["test"], **HERE)
    alphas = [point["alpha"] for point in auto.points]
    assert alphas == sorted(set(alphas))
    assert {0, 0.25, 0.5, 0.75, 1} <= set(alphas)
    for options in ({"path": "winding"}, {"batchnorm_samples": 1}, {"span": (1, 0)}):
        with pytest.raises(UsageError):
            evaluate_path(a, b, tmp_path / "no", **options, **HERE)


def test_a_path_to_itself_is_flat(mlp: Path, tmp_path: Path) -> None:
    a, _ = ends(mlp)
    result = evaluate_path(a, a, tmp_path / "path", points=4, splits=["test"], **HERE)
    first = result.points[0]
    for point in result.points:
        for name, value in point.items():
            if isinstance(value, float) and name != "alpha":
                assert value == pytest.approx(first[name], rel=1e-6), name
    assert result.summary[0]["barrier.loss"] == pytest.approx(0, abs=1e-9)
    assert (result.distance, result.length) == (0, 0)


def test_alignment_lowers_the_barrier_between_independent_runs(tmp_path: Path, train_digits: Any) -> None:
    options = {"hidden": [64], "training": {"epochs": 8}}
    runs = [train_digits(tmp_path / f"run{seed}", seed=seed, **options) for seed in (5, 6)]
    a, b = (max((run / "checkpoints").glob("*.safetensors")) for run in runs)
    plain = evaluate_path(a, b, tmp_path / "plain", points=5, splits=["train"], **HERE)
    aligned = evaluate_path(a, b, tmp_path / "aligned", points=5, splits=["train"], align="permutation", **HERE)
    before, after = (path.summary[0]["barrier.loss"] for path in (plain, aligned))
    assert before > 0.1
    assert after < before / 2
    assert aligned.alignment is not None
    assert aligned.distance == pytest.approx(aligned.alignment["after"], rel=1e-9)
    assert aligned.distance < plain.distance == pytest.approx(aligned.alignment["before"], rel=1e-9)
    assert aligned.points[-1]["loss"] == pytest.approx(plain.points[-1]["loss"], rel=1e-5)
    contents = json.loads((tmp_path / "aligned" / "path.json").read_text())
    assert contents["alignment"]["output_change"] < 1e-4
    again = evaluate_path(
        a, tmp_path / "aligned" / "aligned.safetensors", tmp_path / "again", points=3, splits=["train"], **HERE
    )
    assert again.distance == pytest.approx(aligned.distance, rel=1e-9)
    for name, path in (("a", a), ("b", b)):
        with open_checkpoint(path) as checkpoint:
            wrapped = {f"module.{n}": tensor for n, tensor in checkpoint.state_dict().items()}
            save_checkpoint(tmp_path / f"{name}.safetensors", wrapped, checkpoint.metadata)
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    renamed = evaluate_path(*files, tmp_path / "wrapped", points=3, splits=["train"], align="permutation", **HERE)
    assert renamed.distance == pytest.approx(aligned.distance, rel=1e-9)
    with pytest.raises(UsageError, match="align_spec needs align permutation"):
        evaluate_path(a, b, tmp_path / "no", align_spec="groups.json", **HERE)
