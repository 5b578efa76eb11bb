"""Tests of a probe in Lightning's Trainer: records equal those of an extraction, are logged, and survive a resume."""

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import ckpt_probe as cp
from ckpt_probe.errors import UsageError
from ckpt_probe.integrations import LightningProbe
from ckpt_probe.integrations.lightning import labels_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def samples(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = 2 * torch.randn(3, 6, generator=torch.Generator().manual_seed(9))
    return TensorDataset(centres[labels] + torch.randn(count, 6, generator=generator), labels)


VALIDATION, TEST = samples(75, 1), samples(40, 2)


def loader(data: TensorDataset) -> DataLoader:
    return DataLoader(data, batch_size=16)


class Classifier(pl.LightningModule):
    """A network whose steps call its submodules directly, not through the module's own forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch: Any, _index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, _index: int, dataloader_idx: int = 0) -> None:
        self.net(batch[0])

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(directory: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": CSVLogger(directory, name="log", version=0),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": directory,
    }
    return pl.Trainer(callbacks=list(callbacks), **(settings | options))


def fit(directory: Path, *callbacks: pl.Callback, resume: Path | None = None, **options: Any) -> pl.Trainer:
    lightning_trainer = trainer(directory, *callbacks, **options)
    lightning_trainer.fit(Classifier(), loader(samples(96, 3)), loader(VALIDATION), ckpt_path=resume)
    return lightning_trainer


def batches(data: TensorDataset) -> Iterator[tuple[Tensor, Tensor]]:
    yield from loader(data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two epochs: records.jsonl, log/, and a checkpoint of each epoch."""
    directory = tmp_path_factory.mktemp("run")
    keep = ModelCheckpoint(directory, "{step}", monitor="validation/class.mir", save_top_k=-1)
    fit(directory, LightningProbe(directory / "records.jsonl"), keep)
    return directory


def test_each_validation_has_the_record_of_its_checkpoint(trained: Path, extracted: Callable, same: Callable) -> None:
    records = cp.read_records(trained / "records.jsonl")
    assert [(r["checkpoint"], r["step"], r["split"], r["epoch"]) for r in records] == [
        ("step-000006", 6, "validation", 0.0),
        ("step-000012", 12, "validation", 1.0),
    ]
    for record in records:
        model = Classifier.load_from_checkpoint(trained / f"step={record['step']}.ckpt", weights_only=True)
        same(record, extracted(model.net, batches(VALIDATION)))


@pytest.mark.parametrize("first", [True, False])
def test_a_record_of_averaged_weights_is_that_of_the_averaged_checkpoint(
    first: bool, tmp_path: Path, extracted: Callable, same: Callable
) -> None:
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging").EMAWeightAveraging(decay=0.7)
    probe = LightningProbe(tmp_path / "records.jsonl")
    callbacks = (probe, averaging) if first else (averaging, probe)
    fit(tmp_path, *callbacks, ModelCheckpoint(tmp_path, "{step}", save_top_k=-1))
    for record in cp.read_records(tmp_path / "records.jsonl"):
        model = Classifier.load_from_checkpoint(tmp_path / f"step={record['step']}.ckpt", weights_only=True)
        same(record, extracted(model.net, batches(VALIDATION)))


def test_the_logger_and_other_callbacks_receive_the_numbers(trained: Path) -> None:
    text = (trained / "log" / "version_0" / "metrics.csv").read_text().splitlines()
    column = text[0].split(",").index("validation/class.mir")
    logged = [float(line.split(",")[column]) for line in text[1:]]
    records = cp.read_records(trained / "records.jsonl")
    assert logged == pytest.approx([record["class.mir"] for record in records], rel=1e-6)


def test_a_resumed_run_has_each_step_once(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes((trained / "records.jsonl").read_bytes())
    fit(tmp_path, LightningProbe(file), max_epochs=3, resume=trained / "step=6.ckpt")
    assert [record["step"] for record in cp.read_records(file)] == [6, 12, 18]
    with pytest.raises(UsageError, match="records of another run"):
        fit(tmp_path, LightningProbe(file))


def test_a_test_loop_and_each_of_several_loaders_are_a_split(
    tmp_path: Path, extracted: Callable, same: Callable
) -> None:
    model, probe = Classifier(), LightningProbe(tmp_path / "records.jsonl", classifier="net.3")
    lightning_trainer = trainer(tmp_path, probe)
    lightning_trainer.test(model, loader(TEST), verbose=False)
    lightning_trainer.validate(model, [loader(VALIDATION), loader(TEST)], verbose=False)
    records = cp.read_records(tmp_path / "records.jsonl")
    assert [record["split"] for record in records] == ["test", "validation-0", "validation-1"]
    for record, data in zip(records, (TEST, VALIDATION, TEST), strict=True):
        same(record, extracted(model.net, batches(data)))


def test_every_sets_the_interval_of_steps_and_the_sanity_check_is_not_recorded(tmp_path: Path) -> None:
    fit(tmp_path, LightningProbe(tmp_path / "records.jsonl", every=12), max_epochs=4)
    assert [record["step"] for record in cp.read_records(tmp_path / "records.jsonl")] == [6, 18]


def test_labels_come_from_common_batch_layouts_or_a_function(tmp_path: Path) -> None:
    named = torch.arange(3)
    assert labels_of({"x": torch.zeros(3), "label": named}) is named
    assert labels_of([torch.zeros(3), named]) is named
    with pytest.raises(UsageError, match="labels=FUNCTION"):
        labels_of({"x": torch.zeros(3)})
    probe = LightningProbe(tmp_path / "records.jsonl", labels=lambda batch: 2 - batch[1])
    trainer(tmp_path, probe).validate(Classifier(), loader(VALIDATION), verbose=False)
    usual = LightningProbe(tmp_path / "usual.jsonl")
    trainer(tmp_path, usual).validate(Classifier(), loader(VALIDATION), verbose=False)
    [turned], [straight] = (cp.read_records(tmp_path / f"{name}.jsonl") for name in ("records", "usual"))
    assert turned["nc1.pinv"] == pytest.approx(straight["nc1.pinv"])
    assert turned["accuracy"] != straight["accuracy"]


def test_a_diverged_network_gives_a_warning_and_no_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Classifier()
    with torch.no_grad():
        model.net[3].weight.fill_(math.nan)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, LightningProbe(tmp_path / "records.jsonl")).validate(model, loader(TEST), verbose=False)
    assert "step 0, validation: not measured: classifier weights: 3 rows hold NaN or infinity" in caplog.text
    assert not (tmp_path / "records.jsonl").exists()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
