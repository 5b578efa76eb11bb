"""Train a network in one loop that writes checkpoints and can be interrupted at any moment."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.checkpoints import CheckpointMetadata, library_versions, save_checkpoint
from ckpt_probe.config import TrainingConfig, load_config
from ckpt_probe.data import LabelledData, Split, load_data, one_tensor, require_classes
from ckpt_probe.errors import DataError, error_context, listed
from ckpt_probe.models import (
    build_model,
    choose_device,
    logits_of,
    model_arguments,
    on_device,
    run_once,
    unknown_index,
)
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.training.objective import build_objective
from ckpt_probe.training.pruning import count_zeros, hold_zeros
from ckpt_probe.training.run import (
    RunDirectory,
    begin,
    build_optimizer,
    checkpoint_steps,
    forget_after,
    learning_rate_factor,
    open_run,
    restore_state,
    save_state,
    steps_per_epoch,
    total_steps,
)

LOG_EVERY = 50
STATE_EVERY_SECONDS = 30.0
EVALUATION_BATCH = 1024
MAY_HELP = "try a lower learning rate"


@dataclass(frozen=True)
class TrainingSummary:
    """The result of a call of `train`.

    Attributes:
        first_step: Step at which the call started.
        last_step: Step at which it ended.
        checkpoints: Number of checkpoints of the run.
    """

    first_step: int
    last_step: int
    checkpoints: int


def train(
    config: TrainingConfig | Path | str,
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> TrainingSummary:
    """Train the configured network on split "train" and write checkpoints to `out`/checkpoints.

    Args:
        config: Configuration, or the path of its TOML file.
        out: Directory of the run.
        resume: Whether to continue from the last saved state; on the CPU the final weights are identical, bit for bit,
            to those of an uninterrupted run.
        overwrite: Whether to remove an earlier run in `out`.
        device: "auto", "cpu", "cuda[:n]" or "mps".
        progress: Where progress and notes go.

    Returns:
        Steps and number of checkpoints.

    Raises:
        UsageError: If `out` exists and neither `resume` nor `overwrite` is set.
        DataError: If the data or the start do not fit the model, or the loss is not finite.
    """
    progress = progress or NullProgress()
    config = config if isinstance(config, TrainingConfig) else load_config(config)
    data = load_data(config.data.name, config.data.arguments)
    stage = _Stage(config, data, choose_device(device))
    start, samples = stage.start, len(data.split("train"))
    size = samples if config.training.batch_size == "full" else config.training.batch_size
    run = open_run(Path(out), config, resume=resume, overwrite=overwrite)
    checkpoints = checkpoint_steps(config.checkpoints, start, stage.total, stage.per_epoch)
    if beyond := [str(named) for named in config.checkpoints.steps or () if named > stage.total]:
        progress.message(f"no checkpoint at step {listed(beyond)}: training ends at step {stage.total}")
    step, seconds = start, 0.0
    if resume and run.state.exists():
        step, seconds = restore_state(run.state, stage.model, stage.optimizer)
        progress.message(f"resuming after step {step} of {stage.total}")
    first_step = step
    forget_after(run, step if run.state.exists() else start - 1)
    began = last_saved = time.monotonic() - seconds
    with run.metrics.open("a") as log, progress.task("training", stage.total, "steps") as bar:
        bar.advance(step)
        if not run.state.exists():
            _keep(run, stage, step, log)
            save_state(run.state, stage.model, stage.optimizer, step, time.monotonic() - began)
        order = _order(config, samples, step // stage.per_epoch)
        stage.model.train()
        while step < stage.total:
            epoch, position = divmod(step, stage.per_epoch)
            if position == 0:
                order = _order(config, samples, epoch)
            rate, loss, logits, labels = _step(stage, order[position * size : (position + 1) * size], step)
            step += 1
            if step % LOG_EVERY == 0 or step in checkpoints:
                _require_finite(value := loss.item(), step, "the loss")
                accuracy = int((logits.detach().argmax(dim=1) == labels).sum()) / len(labels)
                spent = {"learning_rate": rate, "seconds": round(time.monotonic() - began, 3)}
                facts = {"batch_loss": value, "batch_accuracy": accuracy, **spent}
                _write(log, {"step": step, "epoch": step / stage.per_epoch, **facts})
                bar.advance(0, loss=value, accuracy=accuracy)
            bar.advance()
            if step in checkpoints:
                _keep(run, stage, step, log)
            if step in checkpoints or time.monotonic() - last_saved > STATE_EVERY_SECONDS:
                save_state(run.state, stage.model, stage.optimizer, step, time.monotonic() - began)
                last_saved = time.monotonic()
    return TrainingSummary(first_step, step, len(checkpoints))


class _Stage:
    """The network, data and length of one run, before its first step."""

    def __init__(self, config: TrainingConfig, data: LabelledData, device: torch.device) -> None:
        self.config, self.data, self.device = config, data, device
        self.per_epoch = steps_per_epoch(config.training, len(data.split("train")))
        self.total = total_steps(config.training, self.per_epoch)
        self.evaluated = list(data.splits) if config.checkpoints.evaluate is None else config.checkpoints.evaluate
        for name in self.evaluated:
            data.split(name)
        torch.manual_seed(config.seed)
        sizes: dict[str, Any] = {"input_shape": data.input_shape, "classes": data.classes}
        self.model_arguments = model_arguments(config.model.name, config.model.arguments, **sizes)
        self.model = build_model(config.model.name, self.model_arguments)
        # Two samples, because some layers do not accept a single one in training mode.
        sample = one_tensor(data.split("train").batch(slice(0, 2))[0], "training")
        _require_fit(config, data, self.model, sample)
        self.start, masks = begin(self.model, config.start, sample)
        if self.start > self.total:
            fault = f"the checkpoint is at step {self.start}, after the last step of this run, {self.total}"
            raise DataError(f"[start]: {fault}")
        self.model.to(device)
        self.objective = build_objective(config.loss, self.model, sample.to(device))
        self.masks = {name: mask.to(device) for name, mask in masks.items()}
        self.optimizer = build_optimizer(config.optimizer, self.model.parameters())


def _require_fit(config: TrainingConfig, data: LabelledData, model: nn.Module, sample: Tensor) -> None:
    with error_context(f"[model] {config.model.name}, [data] {config.data.name}: "):
        logits = run_once(model, sample)
        if logits.ndim != 2:
            raise DataError(
                f"logits of shape {tuple(logits.shape)} for {len(sample)} samples; expected one row per sample"
            )
        require_classes(data, logits.shape[1])


def _step(stage: _Stage, rows: Tensor, step: int) -> tuple[float, Tensor, Tensor, Tensor]:
    """Run one optimizer step; return its learning rate, the loss, the logits (n, C) and the labels (n,)."""
    settings = stage.config
    batch, labels = stage.data.split("train").batch(rows)
    inputs, labels = on_device(one_tensor(batch, "training"), stage.device), on_device(labels, stage.device)
    rate = settings.optimizer.learning_rate * learning_rate_factor(settings.schedule, step, stage.total)
    for group in stage.optimizer.param_groups:
        group["lr"] = rate
    stage.optimizer.zero_grad(set_to_none=True)
    try:
        loss, logits = stage.objective(inputs, labels)
    except DataError as error:
        # Losses of matrix information raise this for features that are not finite.
        raise DataError(f"step {step + 1}: the loss cannot be computed ({error}); {MAY_HELP}") from error
    except IndexError as error:
        raise DataError(f"step {step + 1}: {unknown_index(error)}") from error
    loss.backward()
    stage.optimizer.step()
    hold_zeros(stage.model, stage.masks)
    return rate, loss, logits, labels


def _order(config: TrainingConfig, samples: int, epoch: int) -> Tensor:
    # The order depends only on the seed and the epoch, so that it need not be saved for resuming.
    if config.training.batch_size == "full":
        return torch.arange(samples)
    mixed = np.random.SeedSequence([config.seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.randperm(samples, generator=torch.Generator().manual_seed(int(mixed)))


def _require_finite(loss: float, step: int, which: str) -> None:
    if not math.isfinite(loss):
        raise DataError(f"step {step}: {which} is {loss}; {MAY_HELP}")


def _keep(run: RunDirectory, stage: _Stage, step: int, log: IO[str]) -> None:
    config, data, model = stage.config, stage.data, stage.model
    epoch = step / stage.per_epoch
    metrics = {name: _evaluate(model, data.split(name)) for name in stage.evaluated}
    for name, numbers in metrics.items():
        # Raised before anything is written: a diverged model is not stored.
        _require_finite(numbers["loss"], step, f"the loss on {name}")
    for name, numbers in metrics.items():
        _write(log, {"step": step, "epoch": epoch, "split": name, **numbers})
    zeros, entries = count_zeros(model.state_dict(), list(stage.masks))
    metadata = CheckpointMetadata(
        model=config.model.name,
        model_arguments=stage.model_arguments,
        data=config.data.name,
        data_arguments=config.data.arguments,
        step=step,
        epoch=epoch,
        seed=config.seed,
        sparsity=zeros / entries if entries else None,
        pruned=list(stage.masks),
        metrics=metrics,
        config=config.model_dump(mode="json", by_alias=True),
        versions=library_versions(),
    )
    save_checkpoint(run.checkpoint(step), model.state_dict(), metadata, overwrite=True)


@torch.no_grad()
def _evaluate(model: nn.Module, split: Split) -> dict[str, float]:
    device = next(model.parameters()).device
    loss, right, seen = 0.0, 0, 0
    model.eval()
    for start in range(0, len(split), EVALUATION_BATCH):
        batch, labels = split.batch(slice(start, start + EVALUATION_BATCH))
        inputs = one_tensor(batch, "training")
        try:
            logits, labels = logits_of(model(on_device(inputs, device))), on_device(labels, device)
        except IndexError as error:
            raise DataError(unknown_index(error)) from error
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        right += int((logits.argmax(dim=1) == labels).sum())
        seen += len(labels)
    model.train()
    return {"loss": loss / seen, "accuracy": right / seen}


def _write(log: IO[str], line: dict[str, object]) -> None:
    log.write(json.dumps(line) + "\n")
    log.flush()
