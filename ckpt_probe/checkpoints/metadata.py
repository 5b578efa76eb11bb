"""Metadata of a checkpoint: our entries in the header of a safetensors file, and what the trainer of another states."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.addresses import without_credentials
from ckpt_probe.errors import DataError
from ckpt_probe.files import read_object

if TYPE_CHECKING:
    from ckpt_probe.checkpoints.checkpoint import Checkpoint

FORMAT_VERSION = 1
PREFIX = "ckpt_probe."
LARGEST = 2**63
"""Size of a number that a dump cannot store."""

MONITORED = "monitored"
"""Entry of `Checkpoint.extras` with the scores by which a trainer selects checkpoints."""
STEPS = (
    "global_step", "global_steps", "step", "steps", "iteration", "iter", "num_updates", "n_iter", "current_iter",
    "train_step", "trainer_step", "ss_steps",
)  # fmt: skip
EPOCHS = ("epoch", "current_epoch", "last_epoch", "epochs", "ss_epoch")
LIGHTNING = "pytorch-lightning_version"
HYPERPARAMETERS = "hyper_parameters"
"""Key of the arguments of the module's constructor in checkpoints of Lightning."""
NUMERAL = re.compile(r"[0-9]{1,19}(\.[0-9]{1,19})?")
META = "meta"
"""Key of step and epoch in checkpoints of OpenMMLab's runners."""
TRAINER_STATE = "trainer_state.json"
WEIGHT_FILES = frozenset({"model", "pytorch_model", "adapter_model"})
"""Names of weight files, up to the first dot, that a `trainer_state.json` in the same directory describes."""
SHOWN = ("best_metric", "best_model_checkpoint", "max_steps", "num_train_epochs", "train_batch_size")
SPEEDS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


@dataclass(frozen=True)
class CheckpointMetadata:
    """Our entries in the metadata of a safetensors file; all fields are empty for files of other programs."""

    model: str | None = None
    model_arguments: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    data_arguments: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    epoch: float | None = None
    seed: int | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    classifier: str | None = None
    sparsity: float | None = None
    """Fraction of entries that are exactly zero, over all tensors that pruning may change."""
    pruned: list[str] = field(default_factory=list)
    """Tensors whose zeros are a mask: training that starts here leaves them zero."""

    def to_strings(self) -> dict[str, str]:
        """Return the metadata as strings for safetensors: each field as JSON, under its name with our prefix."""
        ours = {f"{PREFIX}{f.name}": getattr(self, f.name) for f in fields(self)}
        stated = {
            name: json.dumps(without_credentials(value)) for name, value in ours.items() if value not in (None, {}, [])
        }
        return {"format": "pt", f"{PREFIX}format": str(FORMAT_VERSION), **stated}

    @staticmethod
    def from_strings(strings: dict[str, str]) -> "CheckpointMetadata":
        """Create metadata from the strings of `to_strings`.

        Raises:
            DataError: If the format is newer, or a value is not JSON.
        """
        if f"{PREFIX}format" not in strings:
            return CheckpointMetadata()
        version = strings[f"{PREFIX}format"]
        if version not in map(str, range(FORMAT_VERSION + 1)):
            raise DataError(
                f"checkpoint metadata has format {version[:20]}, newer than {FORMAT_VERSION}: upgrade ckpt-probe"
            )
        texts = {f.name: strings.get(f"{PREFIX}{f.name}", "null") for f in fields(CheckpointMetadata)}
        values = {name: _parsed(name, text) for name, text in texts.items()}
        return CheckpointMetadata(**{name: value for name, value in values.items() if value is not None})


@dataclass(frozen=True)
class StatedMetadata:
    """Metadata of a checkpoint of any program.

    Attributes:
        metadata: Our metadata; for files of other programs the step, epoch and metrics of the trainer.
        step_source: Source of the step: "metadata", or a key or file of the trainer; None if no step is stated.
        facts: Entries of the trainer besides the tensors, as plain values: hyperparameters, its state, its name.
    """

    metadata: CheckpointMetadata
    step_source: str | None
    facts: Mapping[str, Any]


def read_metadata(checkpoint: "Checkpoint") -> StatedMetadata:
    """Return the metadata in a checkpoint, or in the state file of Hugging Face's Trainer beside it.

    Raises:
        DataError: If our metadata are of a newer format or damaged, or that file cannot be read.
    """
    try:
        ours = CheckpointMetadata.from_strings(checkpoint.raw_metadata)
    except DataError as error:
        raise DataError(f"{checkpoint.path}: {error}") from error
    state = checkpoint.file.parent / TRAINER_STATE
    of_state_file = checkpoint.file.name.partition(".")[0] in WEIGHT_FILES and state.is_file()
    stated = _from_state_file(state) if of_state_file else _from_entries(checkpoint)
    trainer = stated.metadata
    metadata = replace(
        ours,
        step=trainer.step if ours.step is None else ours.step,
        epoch=trainer.epoch if ours.epoch is None else ours.epoch,
        metrics=ours.metrics or trainer.metrics,
    )
    source = stated.step_source if ours.step is None else "metadata"
    return StatedMetadata(metadata, source, {**stated.facts, **checkpoint.extras} if of_state_file else stated.facts)


def _from_entries(checkpoint: "Checkpoint") -> StatedMetadata:
    """Return step, epoch and other entries in the file of a checkpoint."""
    extras = checkpoint.extras
    meta = extras.get(META)
    entries = {**checkpoint.raw_metadata, **(meta if isinstance(meta, dict) else {}), **extras}
    numbers = {name: number for name in (*STEPS, *EPOCHS) if (number := _number(entries.get(name))) is not None}
    name = next((name for name in STEPS if name in numbers), None)
    epoch = next((numbers[name] for name in EPOCHS if name in numbers), None)
    facts = dict(extras)
    if LIGHTNING in extras:
        facts = {"trainer": f"Lightning {extras[LIGHTNING]}", **{n: v for n, v in facts.items() if n != LIGHTNING}}
    step, source = (None, None) if name is None else (int(numbers[name]), f"{name} in the file")
    return StatedMetadata(CheckpointMetadata(step=step, epoch=epoch), source, facts)


def _from_state_file(file: Path) -> StatedMetadata:
    """Return step, epoch, metrics and settings in the state file of Hugging Face's Trainer."""
    state = read_object(file, "a Trainer's state")
    step, epoch = _number(state.get("global_step")), _number(state.get("epoch"))
    logged = state.get("log_history") or []
    if not isinstance(logged, list):
        raise DataError(f"{file}: not a Trainer's state (log_history is not a list)")
    metrics = {}
    for entry in logged:
        if isinstance(entry, dict) and entry.get("step") == step:
            values = {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
            metrics |= {name: value for name, value in values.items() if name not in SPEEDS}
    facts = {"trainer": "transformers Trainer", **{n: state[n] for n in SHOWN if state.get(n) is not None}}
    stated = CheckpointMetadata(
        step=None if step is None else int(step), epoch=epoch, metrics={"eval": metrics} if metrics else {}
    )
    return StatedMetadata(stated, None if step is None else TRAINER_STATE, facts)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect numbers."""
    import platform  # its import takes as long as that of this package

    names = ("ckpt-probe", "torch", "numpy", "safetensors", "h5py")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _parsed(name: str, text: str) -> Any:
    """Return the value of a field from its JSON, None for null."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"checkpoint metadata {PREFIX}{name} is not valid JSON ({error})") from error
    kinds = KINDS.get(name, str)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
    if value is not None and not (isinstance(value, kinds) and (is_number or kinds in (str, list, dict))):
        raise DataError(f"checkpoint metadata {PREFIX}{name} is {text[:40]}, not a value that training writes there")
    return value


def _number(value: Any) -> int | float | None:
    """Return a number of steps or epochs, which the header of safetensors states as text; None for anything else."""
    if isinstance(value, str) and NUMERAL.fullmatch(value):
        value = float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < LARGEST else None


KINDS: Mapping[str, Any] = {
    "step": int,
    "seed": int,
    "epoch": (int, float),
    "sparsity": (int, float),
    "pruned": list,
    **dict.fromkeys(("model_arguments", "data_arguments", "metrics", "config", "versions"), dict),
}
"""Types of the fields of `CheckpointMetadata`; the others are texts."""


@cache
def _version(name: str) -> str:
    # Each call of `version` parses a file of hundreds of lines.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
