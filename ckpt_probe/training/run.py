"""A run: its directory, optimizer and schedule, initial weights, and the state from which it is resumed."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import open_checkpoint, save_checkpoint
from ckpt_probe.config import (
    CheckpointSettings,
    OptimizerSettings,
    ScheduleSettings,
    StartSettings,
    TrainingConfig,
    TrainingSettings,
)
from ckpt_probe.errors import DataError, UsageError, error_context
from ckpt_probe.files import read_object, write_text
from ckpt_probe.models import find_head, fitting_names, load_weights
from ckpt_probe.remote import resolve
from ckpt_probe.training.pruning import pruned_masks

STEP = "training_state.step"
SECONDS = "training_state.seconds"
ANOTHER = "the state of a different model or optimizer; train again with `overwrite=True`"


class RunDirectory:
    """The files of a run.

    Attributes:
        path: The directory.
        config: The resolved configuration, in JSON.
        metrics: The log: a JSON line for each logged step, and for each split at each checkpoint.
        state: The state from which a run is resumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics = path / "config.json", path / "metrics.jsonl"
        self.state = path / "state.safetensors"

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint after `step` updates."""
        return self.path / "checkpoints" / f"step-{step:06d}.safetensors"


def open_run(path: Path, config: TrainingConfig, *, resume: bool, overwrite: bool) -> RunDirectory:
    """Create or clear the directory of a run.

    Raises:
        UsageError: As in `require_free`.
    """
    require_free([path], [config], resume=resume, overwrite=overwrite)
    run = RunDirectory(path)
    if resume and run.config.exists():
        return run
    if overwrite:
        _clear(run)
    settings = config.model_dump(mode="json", by_alias=True)
    write_text(run.config, json.dumps(settings, indent=2) + "\n", overwrite=True)
    return run


def require_free(paths: Sequence[Path], configs: Sequence[TrainingConfig], *, resume: bool, overwrite: bool) -> None:
    """Check that runs can start or be resumed in their directories, without writing anything.

    Args:
        paths: Directories of the runs.
        configs: Configurations of the runs.
        resume: Whether to resume them.
        overwrite: Whether to remove earlier runs.

    Raises:
        UsageError: If a directory is a file, or is not empty and neither `resume` nor `overwrite` is set; if `resume`
            is set and the configuration differs or is missing; or if `overwrite` would remove a checkpoint from which
            one of the runs starts.
    """
    starts = [Path(config.start.checkpoint) for config in configs if config.start is not None]
    for path, config in zip(paths, configs, strict=True):
        run = RunDirectory(path)
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path}: a file; expected a directory for the run, so choose another name")
        left = _written(run)
        if resume and run.config.exists():
            _require_same(run.config, config.model_dump(mode="json", by_alias=True))
        elif resume and left:
            problem = f"cannot be resumed, because {run.config.name} is missing; start over with `overwrite=True`"
            raise UsageError(f"{left[0]}: {problem}")
        elif not resume and not overwrite and path.is_dir() and any(path.iterdir()):
            raise UsageError(f"{path}: exists already; `resume=True` continues it, `overwrite=True` starts over")
        read = next((file for file in left for start in starts if start.exists() and file.samefile(start)), None)
        if overwrite and read is not None:
            raise UsageError(f"{read}: the run starts from this file and would remove it; choose another directory")


def forget_after(run: RunDirectory, step: int) -> None:
    """Remove the lines of metrics.jsonl after `step`, and an incomplete last one; they will be written again."""
    if not run.metrics.exists():
        return
    try:
        lines = run.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        earlier = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{run.metrics}: a damaged line ({error}); train again with `overwrite=True`") from error
    write_text(run.metrics, "".join(earlier), overwrite=True)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a run's configuration file.

    Raises:
        DataError: If it cannot be read, or is not a configuration.
    """
    with error_context(after="; train again with `overwrite=True`"):
        return read_object(path, "the configuration of a run")


def build_optimizer(settings: OptimizerSettings, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return SGD or AdamW with the settings of the configuration."""
    shared: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.name == "adamw":
        first, second = settings.betas
        return torch.optim.AdamW(parameters, betas=(first, second), **shared)
    return torch.optim.SGD(parameters, momentum=settings.momentum, nesterov=settings.nesterov, **shared)


def steps_per_epoch(settings: TrainingSettings, samples: int) -> int:
    """Return the number of optimizer steps in one pass over the samples; the last batch may be smaller."""
    return 1 if settings.batch_size == "full" else math.ceil(samples / settings.batch_size)


def total_steps(settings: TrainingSettings, per_epoch: int) -> int:
    """Return the number of optimizer steps of the run, at least one."""
    if settings.steps is not None:
        return settings.steps
    return max(1, round((settings.epochs or 0) * per_epoch))


def learning_rate_factor(settings: ScheduleSettings, step: int, total: int) -> float:
    """Return the factor of the base learning rate for the update that follows `step` updates of `total`."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.name == "constant":
        return 1.0
    if settings.name == "step":
        return settings.factor ** sum(step >= milestone * total for milestone in settings.milestones)
    after_warmup = max(1, total - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * (step - settings.warmup_steps) / after_warmup))


def checkpoint_steps(settings: CheckpointSettings, start: int, total: int, per_epoch: int) -> list[int]:
    """Return the numbers of updates after which a checkpoint is written, in order, including `start` and `total`."""
    if settings.every_steps is not None:
        chosen = list(range(0, total, settings.every_steps))
    elif settings.log_spaced is not None:
        # Evenly spaced in log(1 + step), because most changes happen in the first steps.
        share = math.log1p(total) / (settings.log_spaced - 1)
        chosen = [round(math.expm1(share * number)) for number in range(settings.log_spaced)]
    elif settings.steps is not None:
        chosen = settings.steps
    else:
        part = per_epoch / (settings.per_epoch or 1)
        chosen = [round(part * number) for number in range(math.ceil(total / part))]
    return sorted({start, total, *(step for step in chosen if start <= step <= total)})


def begin(model: nn.Module, settings: StartSettings | None, inputs: Tensor) -> tuple[int, dict[str, Tensor]]:
    """Load initial weights into a new model, in place.

    Args:
        model: Model with random weights.
        settings: Checkpoint and the part of it to load; None to start from the random weights.
        inputs: Inputs (n, …) to find the classifier, whose random weights remain if only the backbone is loaded.

    Returns:
        First step, and masks of pruned tensors by name, False for weights that are held at zero.

    Raises:
        DataError: If the checkpoint does not fit, or has no step and `keep_step` is set.
    """
    if settings is None:
        return 0, {}
    fresh = model.state_dict()
    path, base = resolve(settings.checkpoint), None if settings.base is None else resolve(settings.base)
    with open_checkpoint(path, state_key=settings.state_key, base=base) as checkpoint:
        tensors = checkpoint.state_dict()
        step, pruned = checkpoint.metadata.step, checkpoint.metadata.pruned
    with error_context(f"{settings.checkpoint}: "):
        named = pruned_masks(tensors, pruned)
    called = fitting_names(tensors, set(fresh))
    state = {new: tensors[old] for old, new in called.items()}
    masks = {called[name]: mask for name, mask in named.items() if name in called}
    if settings.part == "backbone":
        classifier = tuple(f"{layer}." for layer in find_head(model, inputs).layers)
        state = {name: tensor for name, tensor in state.items() if not name.startswith(classifier)}
        state |= {name: tensor for name, tensor in fresh.items() if name.startswith(classifier)}
        masks = {name: mask for name, mask in masks.items() if not name.startswith(classifier)}
    load_weights(model, state, source=settings.checkpoint)
    if settings.keep_step and step is None:
        raise DataError(f"{settings.checkpoint}: its metadata has no step, which keep_step = true needs")
    return step if settings.keep_step and step is not None else 0, masks


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float) -> None:
    """Write model, optimizer and random state after `step` updates; the order of data depends on seed and step only."""
    tensors: dict[str, Tensor] = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in entries.items() if isinstance(value, Tensor)}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"random.cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["random.mps"] = torch.mps.get_rng_state()
    save_checkpoint(path, tensors, {STEP: str(step), SECONDS: json.dumps(seconds)}, overwrite=True)


def restore_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Load a saved state into model, optimizer and random generators.

    Returns:
        The step, and the duration of the training in seconds.

    Raises:
        DataError: If the file is not a training state, or belongs to another model.
    """
    with open_checkpoint(path) as file:
        if STEP not in file.raw_metadata:
            raise DataError(f"{path}: not a training state; train again with `overwrite=True`")
        tensors = file.state_dict()
        step, seconds = int(file.raw_metadata[STEP]), float(file.raw_metadata[SECONDS])
    load_weights(model, _under("model.", tensors), source=f"{path}: {ANOTHER}")
    try:
        optimizer.load_state_dict(_optimizer_state(optimizer, _under("optimizer.", tensors)))
    except (ValueError, KeyError) as error:
        why = str(error).strip().partition("\n")[0]
        raise DataError(f"{path}: {ANOTHER}: {why}") from error
    torch.set_rng_state(tensors["random.cpu"])
    for index, state in _under("random.cuda.", tensors).items():
        if int(index) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(index))
    if "random.mps" in tensors and torch.backends.mps.is_available():
        torch.mps.set_rng_state(tensors["random.mps"])
    return step, seconds


def _require_same(path: Path, settings: dict[str, Any]) -> None:
    before, now = _flat(read_settings(path)), _flat(settings)
    changed = [
        f"{key} {before.get(key)!r} → {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UsageError(f"{path}: `resume=True` needs the same configuration, which changed: {'; '.join(changed)}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _written(run: RunDirectory) -> list[Path]:
    """Return all files that a run has written except its configuration."""
    checkpoints = sorted((run.path / "checkpoints").glob("step-*.safetensors"))
    return [file for file in (run.state, *checkpoints, run.metrics) if file.exists()]


def _clear(run: RunDirectory) -> None:
    # Other files in the directory are not removed. The configuration is removed last, so that files of a partly removed
    # run are not mistaken for those of another configuration.
    for file in (*_written(run), run.config):
        file.unlink(missing_ok=True)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
