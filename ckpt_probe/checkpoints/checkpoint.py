"""An open checkpoint of any format: its tensors by name, its metadata, and the information that a trainer states."""

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.checkpoints.folders import config_beside
from ckpt_probe.checkpoints.metadata import LARGEST, CheckpointMetadata
from ckpt_probe.checkpoints.tensors import Layout
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.files import content_hash, read_object

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""A state dict that is not changed."""

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


@dataclass(frozen=True)
class Shard:
    """One of the safetensors files that the tensors are stored in.

    Attributes:
        name: Name of the file.
        tensors: Names of its tensors, in the order of their bytes.
        metadata: Texts of its header.
    """

    name: str
    tensors: tuple[str, ...]
    metadata: Mapping[str, str]


@dataclass(eq=False, repr=False)
class Checkpoint:
    """An open checkpoint: names, shapes and dtypes of its tensors, which are read one at a time.

    Each format creates one; `path` is set by `open_checkpoint`.

    Attributes:
        file: File that was opened: of several, the index or the metadata.
        format: Description of the format.
        files: All files of the checkpoint, with those of an adapter's base.
        layout: Dtype and shape of each tensor by name, in the order of the file.
        reader: Function that returns a tensor on the CPU, checked against `stated_hashes`; callers use `read`.
        fill: Function that copies bytes of a tensor in C order, from an offset, into a whole buffer; several threads
            may call it at once. The bytes are not checked against a hash. Safetensors files are read without torch.
        raw_metadata: Texts of a safetensors header; empty for other formats.
        stated_hashes: Hashes of tensors by name, as far as the file states them.
        extras: Objects that were pickled with the tensors, as plain values.
        extra_state: Function that returns the values of modules' `get_extra_state` that are no tensors, by name.
        state_key: Key of the tensors in the pickled object, joined by dots; None if they are not nested.
        others: Other mappings of tensors in the file, which are not read, with their sizes.
        dropped: Entries among the tensors that are not tensors, and are not read.
        shards: Safetensors files with the tensors, if copies should be divided in the same way.
        index: Index of safetensors shards, None without one.
        path: File or directory that was opened.
    """

    file: Path
    format: str
    files: tuple[Path, ...]
    layout: Layout
    reader: "Callable[[str], Tensor]"
    fill: Callable[[str, int, memoryview], None]
    raw_metadata: dict[str, str] = field(default_factory=dict)
    stated_hashes: Mapping[str, str] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    extra_state: Callable[[], Mapping[str, Any]] = dict
    state_key: str | None = None
    others: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    shards: tuple[Shard, ...] = ()
    index: Path | None = None
    path: Path = Path()

    @cached_property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self.layout)

    @cached_property
    def metadata(self) -> CheckpointMetadata:
        """Our metadata; for files of other programs the step, epoch and metrics of the trainer.

        Raises:
            DataError: If the metadata are of a newer format or damaged.
        """
        ours, trainer = self._ours, self._trainer
        return replace(
            ours,
            step=trainer.step if ours.step is None else ours.step,
            epoch=trainer.epoch if ours.epoch is None else ours.epoch,
            metrics=ours.metrics or {split: dict(values) for split, values in trainer.metrics.items()},
        )

    @property
    def step_source(self) -> str | None:
        """Source of the step: "metadata", or a key or file of the trainer; None if no step is stated."""
        return self._trainer.source if self._ours.step is None else "metadata"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Entries of the trainer besides the tensors, as plain values: hyperparameters, its state, its name."""
        return dict(self._trainer.facts)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Arguments of the constructor of a Lightning module, without those that were shortened."""
        values = self.facts.get(HYPERPARAMETERS)
        return {
            name: value
            for name, value in (values if isinstance(values, dict) else {}).items()
            if "…" not in f"{name} {value}"
        }

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by name."""
        return {name: shape for name, (_, shape) in self.layout.items()}

    @cached_property
    def config_directory(self) -> Path | None:
        """Directory of a `config.json` beside its files, or beside those of an adapter's base; None without one."""
        return next(filter(None, map(config_beside, (self.file, *self.files))), None)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._entry(name)[1]

    def dtype(self, name: str) -> str:
        """Return safetensors' name of the dtype of a tensor ("F32", "BF16", "I64", …)."""
        return self._entry(name)[0]

    def read(self, name: str) -> "Tensor":
        """Return a tensor on the CPU.

        Raises:
            DataError: If there is no tensor of this name, or its bytes do not have the stated hash.
        """
        self._entry(name)
        return self.reader(name)

    def state_dict(self) -> "dict[str, Tensor]":
        """Return all tensors by name."""
        return {name: self.reader(name) for name in self.names}

    def renamed(self, names: Mapping[str, str]) -> "Checkpoint":
        """Return this checkpoint with other names for its tensors: new name → present name; others are left out."""
        return replace(
            self,
            layout={new: self.layout[old] for new, old in names.items()},
            reader=lambda name: self.reader(names[name]),
            fill=lambda name, offset, into: self.fill(names[name], offset, into),
            stated_hashes={new: self.stated_hashes[old] for new, old in names.items() if old in self.stated_hashes},
        )

    def below(self, prefix: str) -> "Checkpoint":
        """Return only the tensors whose names start with a prefix and a dot, without it: one of two networks in a file.

        Raises:
            UsageError: If no name starts with the prefix.
        """
        start = f"{prefix}."
        names = {name.removeprefix(start): name for name in self.layout if name.startswith(start)}
        if not names:
            prefixes = list(dict.fromkeys(name.partition(".")[0] for name in self.layout))
            raise UsageError(
                f"{self.file}: `state_key={prefix!r}`: no tensor name starts with it; names start with "
                f"{listed(prefixes)}"
            )

        def extra_state() -> dict[str, Any]:
            return {name.removeprefix(start): v for name, v in self.extra_state().items() if name.startswith(start)}

        # Copies of the shards would contain the other tensors too.
        return replace(self.renamed(names), extra_state=extra_state, state_key=prefix, shards=(), index=None)

    def is_hashed(self, name: str) -> bool:
        """Return whether the file states a hash of a tensor, which `read` compares."""
        return name in self.stated_hashes

    def parameters(self) -> int:
        """Return the number of entries of all tensors."""
        return sum(math.prod(shape) for _, shape in self.layout.values())

    @property
    def size(self) -> int:
        """Size of all files in bytes."""
        return sum(file.stat().st_size for file in self.files)

    def content_hash(self) -> str:
        """Return the SHA-256 of the file; of several files, that of their names and hashes.

        If the file contains several mappings of tensors, the key of this one is included.
        """
        hashes = [content_hash(file) for file in self.files]
        combined = hashes[0]
        if len(hashes) > 1:
            lines = [f"{value}  {file.name}\n" for value, file in zip(hashes, self.files, strict=True)]
            combined = hashlib.sha256("".join(lines).encode()).hexdigest()
        return hashlib.sha256(f"{combined} {self.state_key}".encode()).hexdigest() if self.others else combined

    def __contains__(self, name: str) -> bool:
        return name in self.layout

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _ours(self) -> CheckpointMetadata:
        try:
            return CheckpointMetadata.from_strings(self.raw_metadata)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error

    @cached_property
    def _trainer(self) -> TrainerInfo:
        return _trainer_info(self)

    def _entry(self, name: str) -> tuple[str, tuple[int, ...]]:
        if name not in self.layout:
            near = difflib.get_close_matches(name, self.names, n=3)
            hint = f"; nearest names: {', '.join(near)}" if near else ""
            raise DataError(f"{self.path}: no tensor {name!r}{hint}")
        return self.layout[name]


def _trainer_info(checkpoint: Checkpoint) -> TrainerInfo:
    """Return the information in the checkpoint itself, or in the state file of Hugging Face's Trainer.

    Raises:
        DataError: If that file cannot be read.
    """
    state = checkpoint.file.parent / TRAINER_STATE
    if checkpoint.file.name.partition(".")[0] in WEIGHT_FILES and state.is_file():
        return _from_state_file(state, checkpoint)
    extras = checkpoint.extras
    meta = extras.get(META)
    entries = {**checkpoint.raw_metadata, **(meta if isinstance(meta, dict) else {}), **extras}
    numbers = {name: number for name in (*STEPS, *EPOCHS) if (number := _number(entries.get(name))) is not None}
    name = next((name for name in STEPS if name in numbers), None)
    epoch = next((numbers[name] for name in EPOCHS if name in numbers), None)
    facts = dict(extras)
    if LIGHTNING in extras:
        facts = {"trainer": f"Lightning {extras[LIGHTNING]}", **{n: v for n, v in facts.items() if n != LIGHTNING}}
    if name is None:
        return TrainerInfo(epoch=epoch, facts=facts)
    return TrainerInfo(int(numbers[name]), f"{name} in the file", epoch, {}, facts)


def _from_state_file(file: Path, checkpoint: Checkpoint) -> TrainerInfo:
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
    return TrainerInfo(
        None if step is None else int(step),
        None if step is None else TRAINER_STATE,
        epoch,
        {"eval": metrics} if metrics else {},
        {**facts, **checkpoint.extras},
    )


def _number(value: Any) -> int | float | None:
    """Return a number of steps or epochs, which the header of safetensors states as text; None for anything else."""
    if isinstance(value, str) and NUMERAL.fullmatch(value):
        value = float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < LARGEST else None
