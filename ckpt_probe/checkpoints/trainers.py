"""What a trainer says of a checkpoint: step, epoch and metrics, in the file itself or in the file beside it."""

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
"""Where Lightning keeps the arguments of its module's constructor."""
META = "meta"
"""Where OpenMMLab's runners keep step and epoch."""
TRAINER_STATE = "trainer_state.json"
OF_HUGGING_FACE = frozenset({"model", "pytorch_model", "adapter_model"})
"""What the weights are called, up to the first dot, for which a `trainer_state.json` beside them speaks."""
SHOWN = ("best_metric", "best_model_checkpoint", "max_steps", "num_train_epochs", "train_batch_size")
OF_SPEED = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclass(frozen=True)
class Told:
    """What a trainer says; source: where it says the step, as a person would look it up."""

    step: int | None = None
    source: str | None = None
    epoch: float | None = None
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def told_by_trainer(contents: Contents) -> Told:
    """What stands in the checkpoint beside its tensors, or in Trainer's state beside the file.

    Raises DataError where that state cannot be read.
    """
    state = contents.path.parent / TRAINER_STATE
    if contents.path.name.partition(".")[0] in OF_HUGGING_FACE and state.is_file():
        return _of_state(state, contents)
    beside = contents.beside
    meta = beside.get(META) if isinstance(beside.get(META), dict) else {}
    found = {**(meta or {}), **beside}
    name = next((name for name in STEPS if _is_number(found.get(name))), None)
    epoch = next((found[name] for name in EPOCHS if _is_number(found.get(name))), None)
    facts = dict(beside)
    if LIGHTNING in beside:
        facts = {"trainer": f"Lightning {beside[LIGHTNING]}", **{n: v for n, v in facts.items() if n != LIGHTNING}}
    if name is None:
        return Told(epoch=epoch, facts=facts)
    return Told(int(found[name]), f"{name} in the file", epoch, {}, facts)


def _of_state(file: Path, contents: Contents) -> Told:
    state = read_object(file, "a Trainer's state")
    step: Any = state.get("global_step")
    epoch, logged = state.get("epoch"), state.get("log_history") or []
    if not isinstance(logged, list):
        raise DataError(f"{file}: not a Trainer's state (log_history is no list)")
    history = [entry for entry in logged if isinstance(entry, dict)]
    evaluated = {}
    for entry in history:
        if entry.get("step") == step:
            numbers = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
            evaluated |= {name: value for name, value in numbers.items() if name not in OF_SPEED}
    facts = {"trainer": "transformers Trainer", **{n: state[n] for n in SHOWN if state.get(n) is not None}}
    return Told(
        int(step) if _is_number(step) else None,
        TRAINER_STATE if _is_number(step) else None,
        epoch if _is_number(epoch) else None,
        {"eval": evaluated} if evaluated else {},
        {**facts, **contents.beside},
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
