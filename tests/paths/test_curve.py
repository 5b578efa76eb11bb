"""Tests of curves over a trained midpoint: their formulas, the trained network, resumed training, and refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from ckpt_probe.analysis import analyze
from ckpt_probe.checkpoints import State, open_checkpoint, save_checkpoint
from ckpt_probe.cli.app import run
from ckpt_probe.data import load_data
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction import extract_series
from ckpt_probe.models import build_model
from ckpt_probe.paths import evaluate_path
from ckpt_probe.paths.curve import CurveNet, curve_net
from ckpt_probe.paths.shapes import CURVES, path_of
from ckpt_probe.training import loop

MLP = {"name": "mlp", "arguments": {"hidden": [12]}}
RESNET = {"name": "resnet", "arguments": {"blocks": [1], "width": 4}}
HERE = {"device": "cpu", "points": 5, "splits": ["train"]}


def on_curve(curve: str, a: State, middle: State, b: State, alpha: float) -> State:
    return path_of(curve, a, b, middle)(alpha)


def last_of_each(directory: Path, train_digits: Any, steps: int, **sections: object) -> tuple[Path, Path]:
    """Return the last checkpoints of two runs that differ in their seed."""
    training = {"steps": steps, "batch_size": 128}
    runs = [train_digits(directory / f"run{seed}", seed=seed, training=training, **sections) for seed in (1, 2)]
    first, second = (run / "checkpoints" / f"step-{steps:06d}.safetensors" for run in runs)
    return first, second


@pytest.fixture(scope="module")
def mlps(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> tuple[Path, Path]:
    return last_of_each(tmp_path_factory.mktemp("mlps"), train_digits, 150, model=MLP)


@pytest.fixture(scope="module")
def resnets(tmp_path_factory: pytest.TempPathFactory, train_digits: Any) -> tuple[Path, Path]:
    return last_of_each(tmp_path_factory.mktemp("resnets"), train_digits, 12, model=RESNET)


def read(path: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(path) as checkpoint:
        return checkpoint.state_dict()


def random_state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    weights = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return {"weight": weights, "count": torch.tensor(seed), "mask": torch.tensor([seed > 1])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8])
def test_points_on_curves_equal_their_formulas(dtype: torch.dtype, alpha: float) -> None:
    a, middle, b = (random_state(seed, dtype) for seed in (1, 2, 3))
    first, between, last = (state["weight"].double().numpy() for state in (a, middle, b))
    points = {
        "bezier": (1 - alpha) ** 2 * first + 2 * alpha * (1 - alpha) * between + alpha**2 * last,
        "polychain": first + 2 * alpha * (between - first)
        if alpha <= 0.5
        else between + (2 * alpha - 1) * (last - between),
    }
    for curve, expected in points.items():
        point = on_curve(curve, a, middle, b, alpha)
        assert point["weight"].dtype == dtype
        step = torch.finfo(dtype).eps
        np.testing.assert_allclose(point["weight"].double().numpy(), expected, rtol=2 * step, atol=4 * step)
        assert (point["count"], point["mask"]) == (a["count"], a["mask"])


@pytest.mark.parametrize("curve", CURVES)
def test_the_ends_of_curves_are_exact_and_equal_points_give_the_same_point(curve: str) -> None:
    a, middle, b = (random_state(seed, torch.float16) for seed in (1, 2, 3))
    for alpha, end in ((0.0, a), (1.0, b)):
        assert all(torch.equal(tensor, end[name]) for name, tensor in on_curve(curve, a, middle, b, alpha).items())
    for alpha in (0.2, 0.5, 0.9):
        assert torch.equal(on_curve(curve, a, a, a, alpha)["weight"], a["weight"])
    assert torch.equal(on_curve("polychain", a, middle, b, 0.5)["weight"], middle["weight"])
    broken = {**middle, "weight": torch.full_like(middle["weight"], torch.nan)}
    for alpha in (0.0, 0.5):
        with pytest.raises(DataError, match="'weight' contains NaN"):
            on_curve(curve, a, broken, b, alpha)


@pytest.mark.parametrize("curve", CURVES)
def test_a_training_batch_uses_the_network_at_one_position(curve: str) -> None:
    base = {"input_shape": (1, 4, 4), "classes": 3}
    nets = [build_model("mlp", {"hidden": [5], **base}) for _ in range(3)]
    a, middle, b = ({name: t.clone() for name, t in net.state_dict().items()} for net in nets)
    net, inputs = CurveNet(nets[1], (a, b), curve), torch.randn(6, 1, 4, 4)
    assert [name.removeprefix("middle.") for name, _ in net.named_parameters()] == list(middle)
    assert set(net.state_dict()) == {f"middle.{name}" for name in middle}
    plain = build_model("mlp", {"hidden": [5], **base})
    torch.manual_seed(3)
    drawn = [torch.rand(()).item() for _ in range(4)]
    torch.manual_seed(3)
    for alpha in drawn:
        expected = functional_call(plain, on_curve(curve, a, middle, b, alpha), (inputs,))
        torch.testing.assert_close(net.train()(inputs), expected)
    halfway = functional_call(plain, on_curve(curve, a, middle, b, 0.5), (inputs,))
    torch.testing.assert_close(net.eval()(inputs), halfway)
    torch.manual_seed(3)
    net.train()(inputs).sum().backward()
    at_position = {name: t.clone().requires_grad_() for name, t in on_curve(curve, a, middle, b, drawn[0]).items()}
    functional_call(plain, at_position, (inputs,)).sum().backward()
    share = 2 * drawn[0] * (1 - drawn[0]) if curve == "bezier" else 2 * min(drawn[0], 1 - drawn[0])
    for name, parameter in net.middle.named_parameters():
        torch.testing.assert_close(parameter.grad, share * at_position[name].grad, rtol=1e-4, atol=1e-6)  # pyright: ignore


def test_batch_norm_uses_batch_statistics_and_stores_none(resnets: tuple[Path, Path]) -> None:
    arguments = {**RESNET["arguments"], "input_shape": [1, 8, 8], "classes": 10}
    net = curve_net("resnet", arguments, *map(str, resnets), "bezier")
    assert not any("running" in name or "num_batches" in name for name in net.state_dict())
    layer = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    outputs = []
    layer.register_forward_hook(lambda _layer, _given, output: outputs.append(output))
    inputs, _ = load_data("digits").split("train").batch(slice(0, 64))
    for mode in (True, False):
        net.train(mode)(inputs)
    middle = [(read(resnets[0])["1." + n] + read(resnets[1])["1." + n]) / 2 for n in ("weight", "bias")]
    torch.testing.assert_close(outputs[1].mean(dim=(0, 2, 3)), middle[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[1].std(dim=(0, 2, 3), correction=0), middle[0].abs(), rtol=1e-2, atol=1e-3)


def test_a_trained_midpoint_can_be_used_again(mlps: tuple[Path, Path], tmp_path: Path) -> None:
    out, bezier = tmp_path / "curve", {"path": "bezier", "curve_epochs": 20.0}
    line = evaluate_path(*mlps, tmp_path / "line", **HERE)
    result = evaluate_path(*mlps, out, **bezier, **HERE)
    losses = [point["loss"] for point in result.points]
    highest = max(point["loss"] for point in line.points)
    assert max(losses[1:-1]) < 0.6 * highest
    for i in (0, -1):
        assert losses[i] == line.points[i]["loss"]
    assert result.length > result.distance == line.distance
    with open_checkpoint(mlps[0]) as first, open_checkpoint(out / "midpoint.safetensors") as middle:
        assert first.names == middle.names
        assert (middle.metadata.model, middle.metadata.data) == ("mlp", "digits")
        assert (middle.metadata.step, middle.metadata.metrics) == (None, {})
        assert json.loads(middle.raw_metadata["ckpt_probe.path"])["path"] == "bezier"
        state = on_curve("bezier", first.state_dict(), middle.state_dict(), read(mlps[1]), 0.5)
    model = build_model("mlp", {**MLP["arguments"], "input_shape": [1, 8, 8], "classes": 10})
    model.load_state_dict(state)
    inputs, labels = load_data("digits").split("train").batch(slice(None))
    loss = nn.functional.cross_entropy(model(inputs).double(), labels).item()
    assert losses[2] == pytest.approx(loss, rel=1e-6)
    again = evaluate_path(*mlps, tmp_path / "again", path="bezier", midpoint=out / "midpoint.safetensors", **HERE)
    assert (again.points, again.length) == (result.points, result.length)
    assert not (tmp_path / "again" / "curve").exists()
    extract_series(out / "midpoint.safetensors", tmp_path / "dumps", device="cpu")
    [record] = analyze(tmp_path / "dumps", splits=["train"])
    chained = evaluate_path(*mlps, tmp_path / "chain", path="polychain", midpoint=out / "midpoint.safetensors", **HERE)
    assert chained.points[2]["loss"] == pytest.approx(record["loss"], rel=1e-9)


class InterruptedProgress:
    """Progress that raises KeyboardInterrupt after a number of training steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.name = ""

    def task(self, name: str, total: int | None, unit: str = "") -> "InterruptedProgress":
        self.name = name
        return self

    def __enter__(self) -> "InterruptedProgress":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, amount: int = 1, **facts: object) -> None:
        self.left -= amount if self.name == "training" else 0
        if self.left < 0:
            raise KeyboardInterrupt

    def message(self, text: str) -> None:
        pass


def test_an_interrupted_training_resumes_bit_for_bit(
    mlps: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STATE_EVERY_SECONDS", 0.0)
    options = {"path": "polychain", "curve_epochs": 2.0, **HERE}
    complete = evaluate_path(*mlps, tmp_path / "complete", **options)
    with pytest.raises(KeyboardInterrupt):
        evaluate_path(*mlps, tmp_path / "cut", progress=InterruptedProgress(7), **options)
    assert (tmp_path / "cut" / "curve" / "state.safetensors").exists()
    with pytest.raises(UsageError, match=r"another path .*curve_epochs 2\.0 / 3\.0"):
        evaluate_path(*mlps, tmp_path / "cut", **{**options, "curve_epochs": 3.0})
    torch.manual_seed(99)
    resumed = InterruptedProgress(100)
    assert evaluate_path(*mlps, tmp_path / "cut", progress=resumed, **options) == complete
    expected = read(tmp_path / "complete" / "midpoint.safetensors")
    assert all(torch.equal(t, expected[n]) for n, t in read(tmp_path / "cut" / "midpoint.safetensors").items())
    with pytest.raises(
        UsageError, match=r"contains a finished path; `overwrite=True` replaces it, `resume=True` returns it"
    ):
        evaluate_path(*mlps, tmp_path / "cut", **options)
    again = evaluate_path(*mlps, tmp_path / "cut", overwrite=True, progress=InterruptedProgress(10**6), **options)
    assert again == complete


def test_replacing_a_curve_by_a_line_removes_its_training_run(mlps: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate_path(*mlps, out, path="bezier", curve_epochs=0.2, **HERE)
    step = shutil.copy(mlps[0], out / "curve" / "checkpoints" / "step-000009.safetensors")
    before = sorted(out.rglob("*"))
    with pytest.raises(UsageError, match=f"{step}: this path reads the file and would overwrite it"):
        evaluate_path(step, mlps[1], out, overwrite=True, **HERE)
    assert sorted(out.rglob("*")) == before
    (out / "curve" / "notes").write_text("mine")
    evaluate_path(*mlps, out, overwrite=True, **HERE)
    assert [file.name for file in (out / "curve").iterdir()] == ["notes"]
    (out / "curve" / "notes").unlink()
    evaluate_path(*mlps, out, overwrite=True, **HERE)
    assert {file.name for file in out.iterdir()} == {"path.json", "plan.json", "points.jsonl"}


def test_the_midpoint_is_trained_with_the_optimizer_of_the_first_end(tmp_path: Path, train_digits: Any) -> None:
    adam = {"optimizer": {"name": "adamw", "learning_rate": 0.003, "weight_decay": 0.01}}
    a, b = last_of_each(tmp_path, train_digits, 20, model=MLP, **adam)
    options = {"path": "bezier", "curve_epochs": 1.0, **HERE}
    evaluate_path(a, b, tmp_path / "own", **options)
    settings = json.loads((tmp_path / "own" / "curve" / "config.json").read_text())
    assert (settings["optimizer"]["name"], settings["optimizer"]["learning_rate"]) == ("adamw", 0.003)
    assert (settings["optimizer"]["weight_decay"], settings["training"]["batch_size"]) == (0.01, 128)
    foreign = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for path, source in zip(foreign, (a, b), strict=True):
        save_checkpoint(path, {f"module.{name}": tensor for name, tensor in read(source).items()})
    named = {"model": "mlp", "model_arguments": MLP["arguments"], "data": "digits", "curve_learning_rate": 0.02}
    evaluate_path(*foreign, tmp_path / "foreign", **named, **options)
    settings = json.loads((tmp_path / "foreign" / "curve" / "config.json").read_text())
    assert (settings["optimizer"]["name"], settings["optimizer"]["learning_rate"]) == ("adamw", 0.02)
    assert set(read(tmp_path / "foreign" / "midpoint.safetensors")) == set(read(a))
    assert run(["inspect", str(tmp_path / "foreign" / "midpoint.safetensors")]) == 0


def test_a_curve_ends_at_the_aligned_checkpoint(mlps: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = evaluate_path(*mlps, out, path="bezier", curve_epochs=2.0, align="permutation", **HERE)
    settings = json.loads((out / "curve" / "config.json").read_text())
    assert settings["model"]["arguments"]["b"] == str((out / "aligned.safetensors").resolve())
    assert result.alignment is not None
    assert result.distance == pytest.approx(result.alignment["after"])
    assert result.alignment["after"] < result.alignment["before"]
    with open_checkpoint(mlps[1]) as b, open_checkpoint(out / "aligned.safetensors") as aligned:
        assert aligned.metadata == b.metadata
    extract_series(out / "aligned.safetensors", tmp_path / "dumps", device="cpu", splits=["train"])
    [record] = analyze(tmp_path / "dumps")
    assert (record["step"], record["loss"]) == (150, pytest.approx(result.points[-1]["loss"], rel=1e-9))


def test_batch_norm_statistics_on_a_curve_are_recomputed_or_interpolated(
    resnets: tuple[Path, Path], tmp_path: Path
) -> None:
    result = evaluate_path(*resnets, tmp_path / "out", path="polychain", curve_epochs=1.0, **HERE)
    assert {point["batchnorm"] for point in result.points if 0 < point["alpha"] < 1} == {"recompute"}
    interpolated = evaluate_path(
        *resnets,
        tmp_path / "interpolated",
        path="polychain",
        midpoint=tmp_path / "out" / "midpoint.safetensors",
        batchnorm="interpolate",
        **HERE,
    )
    # At the midpoint itself the interpolated statistics are its own, estimated on the same samples.
    assert interpolated.points[2]["loss"] == pytest.approx(result.points[2]["loss"], rel=1e-5)
    assert interpolated.points[1]["loss"] != pytest.approx(result.points[1]["loss"], rel=1e-3)


def test_invalid_curves_are_refused(
    mlps: tuple[Path, Path], resnets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for options, message in (
        ({"path": "bezier", "span": (-0.5, 1.0)}, "runs from 0 to 1; range -0.5:1 goes beyond"),
        ({"path": "polychain", "span": (0.0, 1.5)}, "range 0:1.5 goes beyond"),
        ({"path": "linear", "midpoint": mlps[0]}, "midpoint needs one of the paths bezier, polychain"),
        ({"path": "bezier", "curve_epochs": 0.0}, "must be positive"),
        ({"path": "bezier", "curve_learning_rate": -0.1}, "must be positive"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate_path(*mlps, out, **options, device="cpu")
    assert not out.exists()
    with pytest.raises(DataError, match=r"step-000012\.safetensors: the model does not fit"):
        evaluate_path(*mlps, out, path="bezier", midpoint=resnets[0], **HERE)
    evaluate_path(*mlps, out, path="bezier", curve_epochs=0.1, **HERE)
    middle = out / "midpoint.safetensors"
    with pytest.raises(UsageError, match="this path reads the file and would overwrite it"):
        evaluate_path(*mlps, out, path="bezier", midpoint=middle, overwrite=True, **HERE)
    assert middle.exists()
    words = ["interpolate", *map(str, mlps), "--device", "cpu"]
    for more, message in (
        (["-o", str(out), "--path", "bezier", "--set", "span=0:2"], "range 0:2 goes beyond"),
        (["-o", str(tmp_path / "x"), "--alpha", "0.5", "--path", "bezier"], "does not take --path"),
    ):
        assert run([*words, *more]) == 2
        assert message in capsys.readouterr().err


def test_the_command_prints_a_finished_curve_again(
    mlps: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "interpolate",
        *map(str, mlps),
        "-o",
        str(tmp_path / "out"),
        "--path",
        "bezier",
        "--set",
        "curve_epochs=0.2",
    ]
    words += [
        "--points",
        "3",
        "--split",
        "test",
        "--device",
        "cpu",
        "--align",
        "activations",
        "--set",
        "align_samples=200",
    ]
    assert run(words) == 0
    first = capsys.readouterr().out
    assert "midpoint.safetensors is the midpoint" in first
    assert "aligned: distance between the ends" in first
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    assert run(words) == 0
    assert capsys.readouterr().out == first
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == stamps
    assert run([*words[:-1], "align_samples=300"]) == 2
    assert "align_samples 200 / 300" in capsys.readouterr().err
