"""Tests of warnings about inputs: the preparation is printed, and an implausible accuracy is reported."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from ckpt_probe.checkpoints import CheckpointMetadata, open_checkpoint, save_checkpoint
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import extract_series
from ckpt_probe.extraction.config import Setup
from ckpt_probe.extraction.plausibility import Outcome, Stated, Tally, stated_accuracies, warnings_of
from ckpt_probe.models import build_model
from ckpt_probe.progress import MessageLog

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALISED = {"mean": list(MEAN), "std": list(STD)}
NETS = """
from torch import nn
def cnn(classes=4, channels=3):
    layers = [nn.Conv2d(channels, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """Write images of four kinds of stripes, train a network on the normalised images, and return both."""
    directory = tmp_path_factory.mktemp("trained")
    (directory / "nets.py").write_text(NETS)
    generator, (y, x) = np.random.default_rng(0), np.mgrid[0:16, 0:16] / 16
    for number in range(120):
        wave = np.sin(12 * (x, y, x + y, x - y)[number % 4])[..., None] * generator.uniform(0.3, 1)
        pixels = 128 + 60 * wave + generator.normal(0, 12, (16, 16, 3))
        folder = directory / "stripes" / f"{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03}.png")
    chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    images = ImageFolder(str(directory / "stripes"), chain)
    inputs, labels = torch.stack([image for image, _ in images]), torch.tensor(images.targets)
    names: dict[str, Any] = {}
    exec(NETS, names)
    torch.manual_seed(0)
    model = names["cnn"]()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert float((model(inputs).argmax(1) == labels).float().mean()) > 0.99
    return directory, model


Run = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _restored_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore `sys.path`, to which loading a function's file adds its directory."""
    monkeypatch.setattr(sys, "path", sys.path.copy())


@pytest.fixture
def run(trained: tuple[Path, nn.Module], tmp_path: Path) -> Run:
    """Return a function that extracts the network, saved with further entries, and returns the messages."""

    def extracted(
        arguments: dict[str, Any], beside: dict[str, Any] | None = None, *, source: Path | None = None, **options: Any
    ) -> list[str]:
        directory, model = trained
        if source is None:
            source = tmp_path / "run"
            source.mkdir(exist_ok=True)
            for step in (1, 2):
                # The weights differ, as equal weights at two steps would be reported.
                state = {name: tensor * (1 + step * 1e-6) for name, tensor in model.state_dict().items()}
                torch.save({"state_dict": state, **(beside or {})}, source / f"step-{step}.pt")
        log, names = (
            MessageLog(),
            {"model": f"{directory / 'nets.py'}:cnn", "data": f"imagefolder:{directory / 'stripes'}"},
        )
        extract_series(source, tmp_path / "dumps", progress=log, data_arguments=arguments, **names, **options)
        return log.messages

    return extracted


@pytest.mark.parametrize("workers", [1, 2])
def test_missing_normalisation_is_printed_and_causes_a_warning(run: Run, workers: int) -> None:
    inputs, warning = run({}, workers=workers)
    assert inputs.startswith("inputs: imagefolder:")
    assert inputs.endswith(
        "size 16×16 (as stored), channels 3 (default), scaling to [0, 1] (default), "
        "normalisation none (nothing asks for it)"
    )
    assert warning.startswith("accuracy stays near chance at every checkpoint: at most 0.2")


def test_the_preparation_of_the_training_causes_no_warning(run: Run) -> None:
    (inputs,) = run(NORMALISED, {"acc": 100.0})
    assert inputs.endswith("normalisation mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225 (argument)")


@pytest.mark.parametrize(
    ("beside", "stated"),
    [
        ({"acc": 99.5}, "acc is 0.995"),
        ({"val_accuracy": 0.97}, "val_accuracy is 0.970"),
        ({"best_acc1": torch.tensor(98.0)}, "best_acc1 is 0.980"),
        (
            {"callbacks": {"ModelCheckpoint{}": {"monitor": "val/acc", "current_score": torch.tensor(0.9)}}},
            "val/acc is 0.9",
        ),
        (
            {"callbacks": {"ModelCheckpoint{}": {"monitor": "val_acc", "best_model_score": torch.tensor(0.9)}}},
            "best_val_acc is 0.900",
        ),
    ],
)
def test_an_accuracy_in_the_file_that_contradicts_the_measured_one_is_reported(
    run: Run, beside: dict[str, Any], stated: str
) -> None:
    message = run({}, beside)[-1]
    assert message.startswith("accuracy contradicts what the checkpoint states: step-1: 0.2")
    assert stated in message
    assert "(and 1 more checkpoints)" in message


def test_the_score_that_lightning_monitors_is_read(tmp_path: Path) -> None:
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Lit(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 2)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            return self.net(batch[0]).square().sum()

        def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
            self.log("val_acc", 0.25 * (1 + self.current_epoch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    saving = ModelCheckpoint(tmp_path, monitor="val_acc", mode="max", save_top_k=-1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    loader = DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=4)
    pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=[saving], **quiet).fit(Lit(), loader, loader)
    by_name = {}
    for path in sorted(tmp_path.glob("*.ckpt")):
        with open_checkpoint(path) as checkpoint:
            by_name[path.stem] = stated_accuracies(checkpoint, Setup())
    assert by_name == {"epoch=0-step=2": [Stated(0.25, "val_acc")], "epoch=1-step=4": [Stated(0.5, "val_acc")]}


@pytest.mark.parametrize("beside", [{"acc": 27.0}, {"val_loss": 0.9}, {"epoch": 90, "accumulate": 4}])
def test_other_values_and_equal_accuracies_are_no_contradiction(run: Run, beside: dict[str, Any]) -> None:
    assert not any("contradicts" in line for line in run({}, beside))


def test_the_evaluation_in_a_trainers_log_is_compared(
    run: Run, trained: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    source = tmp_path / "checkpoint-7"
    source.mkdir()
    torch.save(trained[1].state_dict(), source / "pytorch_model.bin")
    log = [{"step": 3, "eval_accuracy": 0.2}, {"step": 7, "eval_accuracy": 0.96, "eval_loss": 0.1}]
    (source / "trainer_state.json").write_text(json.dumps({"global_step": 7, "log_history": log}))
    message = run({}, source=source)[-1]
    assert "where the accuracy of eval that it states is 0.960" in message
    assert len(run(NORMALISED, source=source, overwrite=True)) == 1


def test_a_followed_run_has_the_same_warnings(run: Run, trained: tuple[Path, nn.Module], tmp_path: Path) -> None:
    run(NORMALISED)
    log, directory = MessageLog(), trained[0]
    names: dict[str, Any] = {"model": f"{directory / 'nets.py'}:cnn", "data": f"imagefolder:{directory / 'stripes'}"}
    options: dict[str, Any] = {"follow": True, "until": 2, "every": 0.01, "progress": log}
    assert len(extract_series(tmp_path / "run", tmp_path / "other", **options, **names).written) == 2
    assert [line.partition(":")[0] for line in log.messages if not line.endswith(".h5: written")] == [
        "inputs",
        "accuracy stays near chance at every checkpoint",
    ]


def test_checkpoints_of_the_package_are_compared_by_split_and_only_on_their_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"input_shape": [1, 8, 8], "classes": 10, "hidden": [16]}
    state = build_model("mlp", arguments).state_dict()
    metrics = {"train": {"accuracy": 0.9}, "test": {"accuracy": 0.1}}
    metadata = CheckpointMetadata(model="mlp", model_arguments=arguments, data="digits", step=3, metrics=metrics)
    save_checkpoint(tmp_path / "step-3.safetensors", state, metadata)
    log = MessageLog()
    extract_series(tmp_path / "step-3.safetensors", tmp_path / "a", progress=log)
    assert "on train, where the accuracy of train that it states is 0.900" in log.messages[-1]
    log = MessageLog()
    extract_series(tmp_path / "step-3.safetensors", tmp_path / "b", data_arguments={"split_seed": 1}, progress=log)
    assert log.messages[0].startswith("inputs: digits: size 8×8 (as stored), channels 1 (as stored), scaling none")
    assert not any("contradicts" in line for line in log.messages)


@pytest.mark.parametrize(("channels", "expected"), [(1, 3), (3, 1)])
def test_a_mismatch_of_channels_names_the_argument(
    channels: int, expected: int, trained: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    directory = trained[0]
    names: dict[str, Any] = {}
    exec(NETS, names)
    torch.save(names["cnn"](channels=expected).state_dict(), tmp_path / "m.pt")
    plural = "channel" if expected == 1 else "channels"
    message = rf"images of {expected} {plural}, not {channels}; add `data_arguments={{'channels': {expected}}}`$"
    options: dict[str, Any] = {
        "model": f"{directory / 'nets.py'}:cnn",
        "model_arguments": {"channels": expected},
        "data": f"imagefolder:{directory / 'stripes'}",
    }
    with pytest.raises(DataError, match=message):
        extract_series(tmp_path / "m.pt", tmp_path / "d", data_arguments={"channels": channels}, **options)
    assert extract_series(tmp_path / "m.pt", tmp_path / "d", data_arguments={"channels": expected}, **options).written


def tally(right: int, *per_class: int) -> Tally:
    return Tally(right, per_class)


@pytest.mark.parametrize(
    ("counts", "warned"),
    [
        (tally(23, *[10] * 10), True),
        (tally(25, *[10] * 10), False),
        (tally(92, 90, 10), False),
        (tally(91, 90, 10), True),
        (tally(57, 50, 50), True),
        (tally(60, 50, 50), False),
        (tally(30, *[10] * 1000), False),
        (tally(24, *[1] * 1000), False),
        (tally(2, *[1] * 1000), True),
        (tally(2, 5, 5), False),
    ],
)
def test_chance_is_the_share_of_the_most_frequent_class(counts: Tally, warned: bool) -> None:
    assert bool(warnings_of([Outcome("a", {"test": counts})])) is warned


def test_one_split_or_checkpoint_above_chance_prevents_the_warning() -> None:
    low, high = tally(10, *[10] * 10), tally(90, *[10] * 10)
    assert warnings_of([Outcome("a", {"test": low}), Outcome("b", {"test": low})])
    assert not warnings_of([Outcome("a", {"test": low}), Outcome("b", {"test": high})])
    assert not warnings_of([Outcome("a", {"train": high, "test": low})])
    assert warnings_of([]) == []


def test_the_best_accuracy_of_a_run_may_exceed_that_of_some_checkpoints() -> None:
    best = (Stated(0.9, "best_acc", best=True),)
    low, high = (
        Outcome("a", {"test": tally(50, 50, 50, 50)}, best),
        Outcome("b", {"test": tally(135, 50, 50, 50)}, best),
    )
    assert warnings_of([low, high]) == []
    assert "a: 0.333 on test, where best_acc is 0.900" in warnings_of([low])[-1]
