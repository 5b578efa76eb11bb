"""Tests of a probe in Hugging Face's Trainer, on tiny models: each record is that of an extracted checkpoint."""

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import ckpt_probe as cp
from ckpt_probe.errors import UsageError
from ckpt_probe.integrations import TrainerProbe

BATCH = 16


class Images(Dataset):
    """Noisy pictures of three classes."""

    def __init__(self, samples: int, seed: int, labelled: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(samples) % 3
        centres = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(9))
        self.images = centres[self.labels] + 0.5 * torch.randn(samples, 1, 8, 8, generator=generator)
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        labels = {"labels": self.labels[index]} if self.labelled else {}
        return {"pixel_values": self.images[index], **labels}

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.images.split(BATCH), self.labels.split(BATCH), strict=True)


TEST = Images(75, seed=1)


def network() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    return ViTForImageClassification(config)


def arguments(directory: Path, **options: Any) -> TrainingArguments:
    settings = {
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_steps": 3,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "learning_rate": 1e-2,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
    }
    return TrainingArguments(output_dir=str(directory), **(settings | options))


def trainer_of(directory: Path, **options: Any) -> Trainer:
    more = {name: options.pop(name) for name in ("eval_dataset", "model") if name in options}
    settings = {"model": network(), "train_dataset": Images(96, seed=2), "eval_dataset": TEST} | more
    return Trainer(args=arguments(directory, **options), **settings)


def records_in(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "records.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Return a Trainer that has trained six steps, with an evaluation and a checkpoint after each third step."""
    trainer = trainer_of(tmp_path_factory.mktemp("run"), load_best_model_at_end=True, metric_for_best_model="class.mir")
    trainer.add_callback(TrainerProbe(trainer))
    trainer.train()
    return trainer


def test_each_evaluation_has_the_record_of_its_checkpoint(
    trained: Trainer, extracted: Callable, same: Callable
) -> None:
    directory = Path(trained.args.output_dir)
    records = records_in(directory)
    assert [(r["checkpoint"], r["step"], r["split"]) for r in records] == [
        ("checkpoint-3", 3, "eval"),
        ("checkpoint-6", 6, "eval"),
    ]
    for record in records:
        model = ViTForImageClassification.from_pretrained(directory / record["checkpoint"])
        same(record, extracted(_Logits(model), TEST.batches()))


class _Logits(nn.Module):
    """A model that returns the logits of a Hugging Face model for pictures alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model(pixel_values=pictures).logits


def test_the_trainer_logs_the_numbers_and_can_choose_by_them(trained: Trainer) -> None:
    logged = {
        entry["step"]: entry["eval_class.mir"] for entry in trained.state.log_history if "eval_class.mir" in entry
    }
    records = {record["step"]: record for record in records_in(Path(trained.args.output_dir))}
    assert logged == {step: record["class.mir"] for step, record in records.items()}
    assert trained.state.best_metric == max(logged.values())
    # The Trainer's own loss does not change.
    losses = [entry["eval_loss"] for entry in trained.state.log_history if "eval_loss" in entry]
    assert losses == pytest.approx([record["loss"] for record in records.values()], rel=1e-5)


def test_an_evaluation_at_a_recorded_step_returns_its_numbers_and_adds_no_line(
    trained: Trainer, extracted: Callable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The log of the run is restored afterwards, since other tests read it.
    monkeypatch.setattr(trained.state, "log_history", trained.state.log_history.copy())
    before = records_in(Path(trained.args.output_dir))
    with caplog.at_level(logging.WARNING):
        metrics = trained.evaluate()
    # The expected values are those of the best checkpoint, which the Trainer has loaded at the end.
    now = extracted(_Logits(trained.model), TEST.batches())
    assert metrics["eval_class.mir"] == pytest.approx(now["class.mir"], rel=1e-6)
    trained.predict(Images(10, 5, labelled=False))
    assert records_in(Path(trained.args.output_dir)) == before
    assert "step 6, split eval has a record already" in caplog.text


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    for resume, steps in ((None, 6), (str(tmp_path / "checkpoint-3"), 9)):
        trainer = trainer_of(tmp_path, max_steps=steps)
        trainer.add_callback(TrainerProbe(trainer))
        trainer.train(resume_from_checkpoint=resume)
    assert [record["step"] for record in records_in(tmp_path)] == [3, 6, 9]
    again = trainer_of(tmp_path)
    again.add_callback(TrainerProbe(again))
    with pytest.raises(UsageError, match="records of another run"):
        again.train()
    assert len(records_in(tmp_path)) == 3


def test_a_probe_handles_smoothed_labels_several_sets_and_an_interval_of_steps(
    tmp_path: Path, extracted: Callable, same: Callable
) -> None:
    sets = {"first": TEST, "second": Images(40, seed=3)}
    trainer = trainer_of(tmp_path, label_smoothing_factor=0.1, eval_dataset=sets, eval_steps=2, save_strategy="no")
    trainer.add_callback(TrainerProbe(trainer, tmp_path / "records.jsonl", every=4))
    trainer.train()
    assert [(r["step"], r["split"]) for r in records_in(tmp_path)] == [
        (2, "first"),
        (2, "second"),
        (6, "first"),
        (6, "second"),
    ]
    same(records_in(tmp_path)[3], extracted(_Logits(trainer.model), sets["second"].batches()))
    assert any("eval_second_class.mir" in entry for entry in trainer.state.log_history)


def test_a_text_model_with_named_inputs_has_the_record_of_an_extraction(
    tmp_path: Path, extracted: Callable, same: Callable
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=12, num_labels=3, **sizes))
    words = torch.randint(5, 30, (60, 10))
    mask = (torch.arange(10) < torch.randint(4, 11, (60, 1))).long()
    texts = [
        {"input_ids": w, "attention_mask": m, "labels": i % 3} for i, (w, m) in enumerate(zip(words, mask, strict=True))
    ]
    trainer = trainer_of(tmp_path, model=model, eval_dataset=texts)
    trainer.add_callback(TrainerProbe(trainer))
    trainer.evaluate()

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, words_and_mask: Tensor) -> Tensor:
            return self.model(input_ids=words_and_mask[:, 0], attention_mask=words_and_mask[:, 1]).logits

    words_and_mask, labels = torch.stack([words, mask], dim=1), torch.arange(60) % 3
    same(
        records_in(tmp_path)[0], extracted(Masked(), zip(words_and_mask.split(BATCH), labels.split(BATCH), strict=True))
    )


def tokens(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return word indices (n, 10) below 30, and the lengths (n,) of the texts without padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 30, (samples, 10), generator=generator), torch.randint(
        4, 11, (samples,), generator=generator
    )


def test_every_word_with_a_label_is_a_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertForTokenClassification(BertConfig(vocab_size=30, max_position_embeddings=12, num_labels=3, **sizes))
    words, lengths = tokens(20, 1)
    labels = torch.where(torch.arange(10) < lengths[:, None], words % 3, -100)
    trainer = trainer_of(tmp_path, model=model, eval_dataset=texts(words, labels))
    trainer.add_callback(TrainerProbe(trainer))
    trainer.evaluate()
    [record] = records_in(tmp_path)
    with torch.no_grad():
        features = model.eval().bert(words).last_hidden_state
    labelled = labels >= 0
    expected = cp.analyze_features(features[labelled], labels[labelled], model.classifier.weight, model.classifier.bias)
    assert record["samples"] == int(lengths.sum())
    assert record["class.mir"] == pytest.approx(expected["class.mir"], rel=1e-6)
    assert record["accuracy"] == expected["accuracy"]


def test_the_label_of_a_language_models_row_is_the_next_word(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=12, n_embd=16, n_layer=1, n_head=2))
    words, _ = tokens(20, 1)
    trainer = trainer_of(tmp_path, model=model, eval_dataset=texts(words, words))
    trainer.add_callback(TrainerProbe(trainer))
    trainer.evaluate()
    [record] = records_in(tmp_path)
    assert record["samples"] == 20 * 9
    with torch.no_grad():
        logits = model.eval()(words).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1).double(), words[:, 1:].flatten())
    assert record["loss"] == pytest.approx(float(expected), rel=1e-6)


def texts(words: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    return [{"input_ids": w, "labels": label} for w, label in zip(words, labels, strict=True)]


def test_missing_labels_are_an_error_and_nan_features_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(tmp_path, eval_dataset=Images(20, 1, labelled=False))
    trainer.add_callback(TrainerProbe(trainer))
    with pytest.raises(UsageError, match=r"have no tensor of labels \(labels\), only: pixel_values"):
        trainer.evaluate()
    several = trainer_of(tmp_path / "several", label_names=["label_ids", "labels"])
    several.add_callback(TrainerProbe(several))
    assert "eval_class.mir" in several.evaluate()
    diverged = trainer_of(tmp_path)
    with torch.no_grad():
        diverged.model.vit.layernorm.weight.fill_(math.nan)
    diverged.add_callback(TrainerProbe(diverged))
    with caplog.at_level(logging.WARNING):
        metrics = diverged.evaluate()
    assert "step 0, eval: not measured: features: 75 rows hold NaN or infinity" in caplog.text
    assert "eval_class.mir" not in metrics
    assert not (tmp_path / "records.jsonl").exists()


def test_hooks_are_removed_after_an_evaluation_and_a_failed_one_does_not_affect_the_next(tmp_path: Path) -> None:
    trainer = Trainer(network(), arguments(tmp_path), train_dataset=TEST, eval_dataset=TEST)
    trainer.add_callback(TrainerProbe(trainer))

    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in trainer.model.modules())

    before = hooks()
    complete = trainer.evaluate()["eval_class.mir"]
    assert hooks() == before

    class Broken(Images):
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            if index == 40:
                raise OSError("the disk is gone")
            return super().__getitem__(index)

    with pytest.raises(OSError, match="the disk is gone"):
        trainer.evaluate(Broken(75, seed=1))
    assert hooks() == before
    assert trainer.evaluate(metric_key_prefix="eval_again")["eval_again_class.mir"] == complete
