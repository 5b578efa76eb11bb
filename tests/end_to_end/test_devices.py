"""Tests from training to metrics on simulated devices.

No operation mixes devices, float64 and asynchronous copies are not used on MPS, and the numbers equal those of the CPU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ckpt_probe as cp
from ckpt_probe.config import TrainingConfig
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.moments import Moments

DEVICES = pytest.mark.parametrize("device", ["mps", "cuda:0"])


def draw(seed: int = 0, samples: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features, weights = (torch.randn(n, 8, generator=generator) for n in (samples, 4))
    return features, torch.arange(samples) % 4, weights


def config(**changes: Any) -> TrainingConfig:
    settings = {
        "data": {"name": "digits"},
        "model": {"name": "resnet", "arguments": {"blocks": [1], "width": 4}},
        "training": {"steps": 6},
        "checkpoints": {"steps": [3]},
    }
    return TrainingConfig.model_validate({**settings, **changes})


@DEVICES
def test_a_simulated_device_enforces_the_rules_of_a_real_one(pretended: Callable[[str], Any], device: str) -> None:
    on_cpu = torch.ones(3)
    with pretended(device):
        on_device = on_cpu.to(device)
        assert (on_device.device, (2 * on_device).device, on_device.cpu().device) == (torch.device(device),) * 2 + (
            on_cpu.device,
        )
        assert torch.zeros(2, device=on_device.device).device == on_device.device
        assert on_device[torch.tensor([0, 2])].device == on_device.device
        for mix in (lambda: on_device + on_cpu, lambda: on_cpu[on_device > 0], lambda: torch.cat([on_cpu, on_device])):
            with pytest.raises(RuntimeError, match="one device"):
                mix()
        with pytest.raises(TypeError, match="numpy"):
            on_device.numpy()
        if device == "mps":
            for fault in (on_device.double, lambda: torch.zeros(2, dtype=torch.float64, device=device)):
                with pytest.raises(TypeError, match="float64"):
                    fault()
            with pytest.raises(RuntimeError, match="asynchronous"):
                on_cpu.to(device, non_blocking=True)


@DEVICES
@pytest.mark.parametrize("name", ["cma", "mir_loss", "hdr_loss", "matrix_entropy", "mir", "gram"])
def test_losses_and_metrics_of_tensors_equal_those_on_the_cpu(
    pretended: Callable[[str], Any], device: str, name: str
) -> None:
    features, labels, weights = draw()
    others, _, _ = draw(1)

    def value_and_gradient(target: str) -> tuple[Tensor, Tensor]:
        rows, names, heads, more = (tensor.to(target) for tensor in (features, labels, weights, others))
        rows = rows.clone().requires_grad_()
        value = {
            "cma": lambda: cp.losses.cma(rows, names, more, names),
            "mir_loss": lambda: cp.losses.mir_loss(rows, names, heads),
            "hdr_loss": lambda: cp.losses.hdr_loss(rows, names, heads),
            "matrix_entropy": lambda: cp.losses.matrix_entropy(rows),
            "mir": lambda: cp.mir(rows, more),
            "gram": lambda: cp.gram(rows)[0].sum(),
        }[name]()
        value.backward()
        if name in {"cma", "mir_loss", "hdr_loss"}:
            assert value.device == rows.device
        assert rows.grad is not None
        return value.detach().cpu(), rows.grad.cpu()

    expected = value_and_gradient("cpu")
    with pretended(device):
        actual = value_and_gradient(device)
    assert all(map(torch.equal, actual, expected))


@DEVICES
def test_moments_and_records_equal_those_on_the_cpu(pretended: Callable[[str], Any], device: str) -> None:
    features, labels, weights = draw(samples=400)

    def moments(target: str) -> dict[str, Any]:
        first, second, loaded = Moments(4), Moments(4), Moments(4)
        for accumulator in (first, second):
            accumulator.update(features.to(target), labels.to(target))
        first.merge(second)
        loaded.load(first.state_dict())
        return loaded.compute(weights.to(target))

    def record(target: str) -> dict[str, Any]:
        options = {"centred": True, "orders": (2,)}
        return cp.analyze_features(features.to(target), labels.to(target), weights.to(target), **options)

    expected = moments("cpu"), record("cpu")
    with pretended(device):
        assert (moments(device), record(device)) == expected


def test_moments_on_mps_are_refused() -> None:
    with pytest.raises(DataError, match="float64, which MPS lacks"):
        Moments(4, device="mps")


@pytest.mark.parametrize("loss", [{}, {"mir": 0.1, "hdr": 0.1, "label_smoothing": 0.1}])
def test_training_and_extraction_on_mps_equal_those_on_the_cpu(
    pretended: Callable[[str], Any], tmp_path: Path, loss: dict[str, float]
) -> None:
    def records(device: str) -> list[dict[str, Any]]:
        run, dumps = tmp_path / device, tmp_path / f"{device}-dumps"
        cp.train(config(loss=loss), run, device=device)
        cp.train(config(loss=loss), run, device=device, resume=True)
        cp.extract_series(run, dumps, device=device)
        return list(cp.analyze(dumps))

    expected = records("cpu")
    with pretended("mps"):
        assert records("mps") == expected
        with pytest.raises(UsageError, match=r"`dtype=.float64.`: not supported by MPS"):
            cp.extract_series(tmp_path / "mps", tmp_path / "double", device="mps", dtype="float64")


def test_training_with_cma_on_mps_equals_that_on_the_cpu(
    pretended: Callable[[str], Any], study: Callable[[str], str], tmp_path: Path
) -> None:
    captions = [[f"the digit {number}", f"a handwritten {number}"] for number in range(10)]
    model = {"name": study("cma/two_source.py:two_source"), "arguments": {"captions": captions, "channels": [4]}}
    settings = config(model=model, loss={"cma": 1.0})
    expected = cp.train(settings, tmp_path / "cpu", device="cpu")
    with pretended("mps"):
        cp.train(settings, tmp_path / "mps", device="mps")
    assert expected.checkpoints == 3
    for name in ("step-000003", "step-000006"):
        files = [tmp_path / device / "checkpoints" / f"{name}.safetensors" for device in ("cpu", "mps")]
        states = []
        for file in files:
            with cp.open_checkpoint(file) as opened:
                states.append(opened.state_dict())
        assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


@pytest.mark.parametrize("settings", [{"align": "permutation"}, {"align": "activations"}, {"path": "bezier"}])
def test_paths_on_mps_equal_those_on_the_cpu(
    pretended: Callable[[str], Any], tmp_path: Path, settings: dict[str, Any]
) -> None:
    runs = [tmp_path / f"run-{seed}" for seed in (0, 1)]
    for seed, run in enumerate(runs):
        cp.train(config(seed=seed), run, device="cpu")
    ends = [run / "checkpoints" / "step-000006.safetensors" for run in runs]

    def points(device: str) -> list[dict[str, Any]]:
        options = {"points": 3, "splits": ["test"], "batchnorm_samples": 256, "curve_epochs": 0.1, **settings}
        return cp.evaluate_path(*ends, tmp_path / device, device=device, **options).points

    expected = points("cpu")
    with pretended("mps"):
        assert points("mps") == expected


def test_a_plane_and_a_pruned_series_on_mps_equal_those_on_the_cpu(
    pretended: Callable[[str], Any], tmp_path: Path
) -> None:
    cp.train(config(), tmp_path / "run", device="cpu")
    last = tmp_path / "run" / "checkpoints" / "step-000006.safetensors"

    def results(device: str) -> tuple[Any, Any]:
        settings = {"directions": "random", "grid": 2, "splits": ["test"], "batchnorm_samples": 256}
        plane = cp.evaluate_plane(last, out=tmp_path / device, device=device, **settings)
        cp.prune(last, tmp_path / f"{device}-pruned", [0.5], retrain=config(), device=device)
        with cp.open_checkpoint(tmp_path / f"{device}-pruned" / "sparsity-0.500.safetensors") as pruned:
            return plane.points, {name: tensor.tolist() for name, tensor in pruned.state_dict().items()}

    expected = results("cpu")
    with pretended("mps"):
        assert results("mps") == expected
