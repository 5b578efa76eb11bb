"""Tests of directories that trainers write: every checkpoint is listed once, in order, with its step."""

import json
import shutil
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from accelerate import Accelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from ckpt_probe.checkpoints import likely_heads, open_checkpoint, open_series
from ckpt_probe.checkpoints.series import step_of
from ckpt_probe.errors import DataError

CONFIG = BertConfig(
    vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=8, num_labels=3,
)  # fmt: skip


class Sentences(Dataset):
    """Twelve sentences of three classes."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.arange(8), "labels": torch.tensor(index % 3)}


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("hugging_face") / "run"
    arguments = TrainingArguments(
        str(out), max_steps=4, save_steps=2, eval_strategy="steps", eval_steps=2, per_device_train_batch_size=4,
        report_to=[], logging_steps=2, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        BertForSequenceClassification(CONFIG),
        arguments,
        train_dataset=Sentences(),
        eval_dataset=Sentences(),
        compute_metrics=lambda _: {"accuracy": 0.25},
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return out


class Layer(lightning.LightningModule):
    """A Lightning module with one linear layer."""

    def __init__(self, width: int = 5, rate: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(4, 3)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(3))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self.net(batch[0]).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


@pytest.fixture(scope="module")
def lit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lightning") / "version_0" / "checkpoints"
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, save_top_k=-1, save_last=True)],
    )
    trainer.fit(Layer(), DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=2))
    return folder


def listed(path: Path) -> list[tuple[str, int | None, str | None, tuple[str, ...]]]:
    return [(member.name, member.step, member.step_source, member.also) for member in open_series(path)]


def test_checkpoints_of_a_transformers_trainer_are_listed_with_their_steps(hugging_face: Path) -> None:
    assert listed(hugging_face) == [
        ("checkpoint-2", 2, "trainer_state.json", ()),
        ("checkpoint-4", 4, "trainer_state.json", ("model",)),
    ]
    with open_checkpoint(hugging_face / "checkpoint-2") as checkpoint:
        assert checkpoint.metadata.step == 2
        assert checkpoint.metadata.epoch == pytest.approx(2 / 3)
        assert checkpoint.metadata.metrics["eval"]["accuracy"] == 0.25
        assert checkpoint.facts["trainer"] == "transformers Trainer"
        assert checkpoint.config_directory == hugging_face / "checkpoint-2"
        assert likely_heads(checkpoint.layout)[0].module == "classifier"


def test_weights_in_the_run_directory_are_listed_if_they_differ_from_the_last_checkpoint(
    hugging_face: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(hugging_face, tmp_path / "run")
    shutil.copytree(run / "checkpoint-4", run / "checkpoint-final")
    assert listed(run)[-1] == ("checkpoint-4", 4, "trainer_state.json", ("checkpoint-final", "model"))
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "model.safetensors").write_bytes(data)
    (run / "trainer_state.json").unlink()
    assert [name for name, *_ in listed(run)] == ["checkpoint-2", "checkpoint-4", "model"]
    assert listed(run)[-1] == ("model", None, None, ())


def test_an_invalid_state_of_a_trainer_is_refused(hugging_face: Path, tmp_path: Path) -> None:
    run = shutil.copytree(hugging_face, tmp_path / "run")
    for text in ("{", "[]", "[" * 10**5):
        (run / "checkpoint-2" / "trainer_state.json").write_text(text)
        damaged = open_series(run)[0].path
        message = r"checkpoint-2/trainer_state\.json: not a Trainer's state"
        with pytest.raises(DataError, match=message), open_checkpoint(damaged) as checkpoint:
            assert checkpoint.metadata.step is None
    (run / "checkpoint-2" / "trainer_state.json").write_text(json.dumps({"global_step": "two", "log_history": None}))
    assert listed(run)[0] == ("checkpoint-2", 2, "name", ())


def test_files_for_resuming_are_not_listed_as_checkpoints(hugging_face: Path) -> None:
    [member] = open_series(hugging_face / "checkpoint-2")
    assert member.path.name == "model.safetensors"
    with pytest.raises(DataError, match=r"training_args\.bin: needs transformers\..*, not on the list of harmless"):
        open_checkpoint(hugging_face / "training_args.bin").__enter__()


def test_the_last_checkpoint_of_lightning_is_listed_once(lit: Path) -> None:
    source = "global_step in the file"
    expected = [("epoch=0-step=4", 4, source, ()), ("epoch=1-step=8", 8, source, ())]
    assert listed(lit) == [*expected, ("epoch=2-step=12", 12, source, ("last",))]
    assert listed(lit.parent) == listed(lit)
    with open_checkpoint(lit / "last.ckpt") as checkpoint:
        assert checkpoint.state_key == "state_dict"
        assert checkpoint.names == ["loss.weight", "net.bias", "net.weight"]
        assert checkpoint.facts["hyper_parameters"] == {"width": 5, "rate": 0.1}
        assert checkpoint.facts["trainer"] == f"Lightning {lightning.__version__}"
        assert (checkpoint.metadata.step, checkpoint.metadata.epoch) == (12, 2)


def test_a_last_checkpoint_with_different_weights_is_listed_and_a_link_is_not(lit: Path, tmp_path: Path) -> None:
    run = shutil.copytree(lit, tmp_path / "run")
    saved = torch.load(run / "last.ckpt", weights_only=True)
    saved["state_dict"]["net.weight"] += 1
    torch.save(saved, run / "last.ckpt")
    assert [name for name, *_ in listed(run)] == ["epoch=0-step=4", "epoch=1-step=8", "epoch=2-step=12", "last"]
    (run / "last.ckpt").unlink()
    (run / "last.ckpt").symlink_to("epoch=1-step=8.ckpt")
    assert [also for *_, also in listed(run)] == [(), ("last",), ()]


def test_states_of_accelerate_are_listed_by_their_number(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(4, 3)
    model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    for number in range(3):
        nn.init.constant_(model.weight, number)
        accelerator.save_state(str(tmp_path / "checkpoints" / f"checkpoint_{number}"), safe_serialization=number != 1)
    assert listed(tmp_path) == [(f"checkpoint_{number}", number, "name", ()) for number in range(3)]
    for number, format in enumerate(("safetensors", "torch zip", "safetensors")):
        with open_checkpoint(tmp_path / "checkpoints" / f"checkpoint_{number}") as checkpoint:
            assert checkpoint.format == format
            assert torch.equal(checkpoint.read("weight"), torch.full((3, 4), float(number)))


def test_the_number_of_a_model_of_accelerate_is_not_a_step(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(nn.Linear(4, 3), nn.Linear(2, 2))
    accelerator.save_state(str(tmp_path / "checkpoint_7"))
    with open_checkpoint(tmp_path / "checkpoint_7" / "model_1.safetensors") as checkpoint:
        assert step_of(checkpoint) == (7, "name")
    (tmp_path / "checkpoint_7").rename(tmp_path / "state")
    with open_checkpoint(tmp_path / "state" / "model_1.safetensors") as checkpoint:
        assert step_of(checkpoint) == (None, None)
    with pytest.raises(DataError, match=r"state: several models that accelerate saved in one state: model"):
        open_series(tmp_path / "state")


def test_model_files_of_deepspeed_and_of_its_conversion_tool_are_read(tmp_path: Path) -> None:
    """The files have the layout that DeepSpeed and its zero_to_fp32.py write; DeepSpeed itself needs a GPU."""
    state = nn.Linear(4, 3).state_dict()
    saved = {
        "module": state, "buffer_names": [], "optimizer": None, "param_shapes": [{"weight": torch.Size([3, 4])}],
        "frozen_param_shapes": None, "lr_scheduler": None, "data_sampler": None, "random_ltd": None,
        "skipped_steps": 0, "global_steps": 40, "global_samples": 640, "dp_world_size": 1, "mp_world_size": 1,
        "ds_config": {"train_batch_size": 16}, "ds_version": "0.15.0",
    }  # fmt: skip
    for step in (40, 80):
        folder = tmp_path / f"global_step{step}"
        folder.mkdir()
        torch.save(saved | {"global_steps": step}, folder / "mp_rank_00_model_states.pt")
        torch.save({"optimizer_state_dict": {}}, folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (tmp_path / "latest").write_text("global_step80")
    source = "global_steps in the file"
    assert listed(tmp_path) == [("global_step40", 40, source, ()), ("global_step80", 80, source, ())]
    with open_checkpoint(tmp_path / "global_step40") as checkpoint:
        assert checkpoint.state_key == "module"
        assert checkpoint.facts["ds_config"] == {"train_batch_size": 16}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path / "pytorch_model.bin") as checkpoint:
        assert checkpoint.names == ["bias", "weight"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model_epoch_2.pth", "model_epoch_10.pth"], [(2, "epoch in the name"), (10, "epoch in the name")]),
        (["iter_200.pth", "iter_1000.pth", "latest.pth"], [(200, "name"), (1000, "name"), (None, None)]),
        (["ckpt_5.pt", "ckpt-10.pt"], [(5, "name"), (10, "name")]),
        (["epoch=3-val_acc=0.91.ckpt"], [(3, "epoch in the name")]),
        (["model_0100.pth.tar", "model_0200.pth.tar"], [(100, "number in the name"), (200, "number in the name")]),
        (["resnet50.pth"], [(None, None)]),
    ],
)
def test_the_step_and_its_source_are_read_from_the_name(
    tmp_path: Path, names: list[str], expected: list[tuple[Any, Any]]
) -> None:
    for number, name in enumerate(names):
        torch.save({"w": torch.full((2,), float(number))}, tmp_path / name)
    assert [(member.step, member.step_source) for member in open_series(tmp_path)] == expected


def test_the_epoch_in_the_file_is_the_step_if_there_is_no_other(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "epoch": 12}, tmp_path / "model_best.pth")
    [member] = open_series(tmp_path)
    assert (member.step, member.step_source) == (12, "epoch in the file")
