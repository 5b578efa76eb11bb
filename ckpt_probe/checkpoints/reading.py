"""Open a checkpoint of any format and read its tensors by name; pickles are never executed."""

import difflib
import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.addresses import as_path
from ckpt_probe.checkpoints.contents import Contents, renamed
from ckpt_probe.checkpoints.folders import config_beside
from ckpt_probe.checkpoints.formats import open_contents
from ckpt_probe.checkpoints.header import LARGEST, CheckpointMetadata, require_hash, tensor_hash
from ckpt_probe.checkpoints.tensors import Layout
from ckpt_probe.errors import DataError
from ckpt_probe.files import content_hash, read_object

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""A state dict that is not changed."""

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


class Checkpoint:
    """An open checkpoint: names, shapes and dtypes of its tensors, which are read one at a time.

    Attributes:
        path: File or directory that was opened.
        names: Names of the tensors, sorted.
        layout: Dtype and shape of each tensor by name, in the order of the file.
        raw_metadata: Texts of a safetensors header; empty for other formats.
        format: Description of the format.
        file: File that was opened: of several, the index or the metadata.
        files: All files of the checkpoint, with those of an adapter's base.
        shards: Safetensors files with the tensors, in their order; empty for other formats.
        index: Index of safetensors shards, None without one.
        stated_hashes: Hashes of tensors by name, as far as the file states them; every `read` checks against them.
        state_key: Key of the tensors in the pickled object, joined by dots; None if they are not nested.
        others: Other mappings of tensors in the file, which are not read, with their sizes.
        dropped: Entries among the tensors that are not tensors, and are not read.
    """

    def __init__(self, path: Path, contents: Contents) -> None:
        self.path = path
        self.names: list[str] = sorted(contents.layout)
        self.layout: Layout = contents.layout
        self.raw_metadata: dict[str, str] = dict(contents.metadata)
        self.format, self.file, self.files = contents.format, contents.path, contents.files
        self.shards, self.index, self.stated_hashes = contents.shards, contents.index, contents.hashes
        self.state_key, self.others, self.dropped = contents.state_key, contents.others, contents.dropped
        self._contents = contents

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
        return self._contents.read(name)

    def fill(self, name: str, offset: int, into: memoryview) -> None:
        """Copy bytes of a tensor in C order into a whole buffer; several threads may call this at once.

        The bytes are not checked against a hash; see `require_digests`. Safetensors files are read without torch.

        Args:
            name: Name of the tensor.
            offset: Number of bytes of the tensor before the first that is copied.
            into: Buffer.
        """
        self._contents.fill(name, offset, into)

    def state_dict(self) -> "dict[str, Tensor]":
        """Return all tensors by name."""
        return {name: self._contents.read(name) for name in self.names}

    def extra_state(self) -> Mapping[str, Any]:
        """Return the values of modules' `get_extra_state` that are no tensors, by name."""
        return self._contents.extra()

    def renamed(self, names: Mapping[str, str]) -> "Checkpoint":
        """Return this checkpoint with other names for its tensors: new name → present name; others are left out."""
        return Checkpoint(self.path, renamed(self._contents, names))

    def is_hashed(self, name: str) -> bool:
        """Return whether the file states a hash of a tensor, which `read` compares."""
        return name in self.stated_hashes

    def require_digests(self, name: str, digests: Iterable[bytes]) -> None:
        """Raise DataError if the `piece_digests` of a tensor's bytes do not have the stated hash."""
        require_hash(self.path, name, tensor_hash(self._entry(name), digests), self.stated_hashes.get(name))

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
        return _trainer_info(self._contents)

    def _entry(self, name: str) -> tuple[str, tuple[int, ...]]:
        if name not in self.layout:
            near = difflib.get_close_matches(name, self.names, n=3)
            hint = f"; nearest names: {', '.join(near)}" if near else ""
            raise DataError(f"{self.path}: no tensor {name!r}{hint}")
        return self.layout[name]


@contextmanager
def open_checkpoint(
    path: Path | str, *, state_key: str | None = None, base: Path | str | None = None
) -> Iterator[Checkpoint]:
    """Open a checkpoint, within a `with` block.

    Args:
        path: File, or directory with one checkpoint.
        state_key: Key of the tensors in a pickled object with several mappings of tensors, joined by dots; also a
            prefix of the names of tensors.
        base: Checkpoint that an adapter is merged onto.

    Yields:
        The checkpoint.

    Raises:
        DataError: If there is no checkpoint, or it is damaged, claims more bytes than its files have, or needs classes
            that could run code.
        UsageError: If `state_key` or `base` is required, or does not fit.
    """
    with ExitStack() as stack:
        merged = None if base is None else stack.enter_context(open_contents(as_path(base), state_key))
        contents = stack.enter_context(open_contents(as_path(path), state_key, merged))
        yield Checkpoint(as_path(path), contents)


def _trainer_info(contents: Contents) -> TrainerInfo:
    """Return the information in the checkpoint itself, or in the state file of Hugging Face's Trainer.

    Raises:
        DataError: If that file cannot be read.
    """
    state = contents.path.parent / TRAINER_STATE
    if contents.path.name.partition(".")[0] in WEIGHT_FILES and state.is_file():
        return _from_state_file(state, contents)
    extras = contents.extras
    meta = extras.get(META)
    entries = {**contents.metadata, **(meta if isinstance(meta, dict) else {}), **extras}
    numbers = {name: number for name in (*STEPS, *EPOCHS) if (number := _number(entries.get(name))) is not None}
    name = next((name for name in STEPS if name in numbers), None)
    epoch = next((numbers[name] for name in EPOCHS if name in numbers), None)
    facts = dict(extras)
    if LIGHTNING in extras:
        facts = {"trainer": f"Lightning {extras[LIGHTNING]}", **{n: v for n, v in facts.items() if n != LIGHTNING}}
    if name is None:
        return TrainerInfo(epoch=epoch, facts=facts)
    return TrainerInfo(int(numbers[name]), f"{name} in the file", epoch, {}, facts)


def _from_state_file(file: Path, contents: Contents) -> TrainerInfo:
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
        {**facts, **contents.extras},
    )


def _number(value: Any) -> int | float | None:
    """Return a number of steps or epochs, which the header of safetensors states as text; None for anything else."""
    if isinstance(value, str) and NUMERAL.fullmatch(value):
        value = float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value < LARGEST else None
