"""Step, epoch and metrics that a trainer states in a checkpoint, or in its state file beside the checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_probe.checkpoints.contents import Contents
from ckpt_probe.errors import DataError
from ckpt_probe.files import read_object

STEPS = (
    "global_step", "global_steps", "step", "steps", "iteration", "iter", "num_updates", "n_iter", "current_iter",
    "train_step", "trainer_step",
)  # fmt: skip
EPOCHS = ("epoch", "current_epoch", "last_epoch", "epochs")
LIGHTNING = "pytorch-lightning_version"
HYPERPARAMETERS = "hyper_parameters"
"""Key of the arguments of the module's constructor in checkpoints of Lightning."""
META = "meta"
"""Key of step and epoch in checkpoints of OpenMMLab's runners."""
TRAINER_STATE = "trainer_state.json"
WEIGHT_FILES = frozenset({"model", "pytorch_model", "adapter_model"})
"""Names of weight files, up to the first dot, that a `trainer_state.json` in the same directory describes."""
SHOWN = ("best_metric", "best_model_checkpoint", "max_steps", "num_train_epochs", "train_batch_size")
SPEEDS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclass(frozen=True)
class TrainerInfo:
    """Information that a trainer states about a checkpoint.

    Attributes:
        step: Training step.
        source: Key or file that states the step, for people.
        epoch: Epoch.
        metrics: Metrics by split and name.
        facts: Other entries, as plain values.
    """

    step: int | None = None
    source: str | None = None
    epoch: float | None = None
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def trainer_info(contents: Contents) -> TrainerInfo:
    """Return the information in the checkpoint itself, or in the state file of Hugging Face's Trainer.

    Raises:
        DataError: If that file cannot be read.
    """
    state = contents.path.parent / TRAINER_STATE
    if contents.path.name.partition(".")[0] in WEIGHT_FILES and state.is_file():
        return _from_state_file(state, contents)
    extras = contents.extras
    meta = extras.get(META)
    entries = {**(meta if isinstance(meta, dict) else {}), **extras}
    name = next((name for name in STEPS if _is_number(entries.get(name))), None)
    epoch = next((entries[name] for name in EPOCHS if _is_number(entries.get(name))), None)
    facts = dict(extras)
    if LIGHTNING in extras:
        facts = {"trainer": f"Lightning {extras[LIGHTNING]}", **{n: v for n, v in facts.items() if n != LIGHTNING}}
    if name is None:
        return TrainerInfo(epoch=epoch, facts=facts)
    return TrainerInfo(int(entries[name]), f"{name} in the file", epoch, {}, facts)


def _from_state_file(file: Path, contents: Contents) -> TrainerInfo:
    state = read_object(file, "a Trainer's state")
    step: Any = state.get("global_step")
    epoch, logged = state.get("epoch"), state.get("log_history") or []
    if not isinstance(logged, list):
        raise DataError(f"{file}: not a Trainer's state (log_history is not a list)")
    metrics = {}
    for entry in logged:
        if isinstance(entry, dict) and entry.get("step") == step:
            values = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
            metrics |= {name: value for name, value in values.items() if name not in SPEEDS}
    facts = {"trainer": "transformers Trainer", **{n: state[n] for n in SHOWN if state.get(n) is not None}}
    return TrainerInfo(
        int(step) if _is_number(step) else None,
        TRAINER_STATE if _is_number(step) else None,
        epoch if _is_number(epoch) else None,
        {"eval": metrics} if metrics else {},
        {**facts, **contents.extras},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63
