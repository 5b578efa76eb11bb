"""A map-style dataset read in batches, with worker processes if requested; unreadable samples are left out."""

import os
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import current_process
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from ckpt_probe.children import safe_path
from ckpt_probe.data.samples import Inputs, LabelledBatch
from ckpt_probe.errors import DataError, last_line, listed
from ckpt_probe.metrics.rows import as_labels

LABEL_NAMES = ("labels", "label")
"""Names of the label in samples that are mappings, and of label columns in tables."""

Collate = Callable[[list[Any]], Any]


def default_workers() -> int:
    """Return the default number of reading processes: the available processors less one, from 1 to 8."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, processors - 1))


class Unreadable(Exception):
    """Raised for a damaged sample, which is then left out and counted.

    Attributes:
        number: Index of the sample, which is set where it is caught.
    """

    number = -1


class DatasetSplit:
    """A split from a map-style dataset.

    Args:
        dataset: Has `len` and `[i]`, which returns (input, label) or a mapping with `label` or `labels`.
        labels: All labels, shape (N,), if they are known without reading the samples.
        collate: Function that joins samples into a batch; torch's default if None.
        workers: Number of reading processes; 0 reads in this process.
        tolerance: Fraction of samples that may raise `Unreadable`; more of them end the run with a DataError.

    Attributes:
        left_out: Reason for each sample that could not be read so far, by its index.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        labels: Any = None,
        collate: Collate | None = None,
        workers: int = 0,
        tolerance: float = 0.0,
    ) -> None:
        self._dataset = dataset
        self._labels = None if labels is None else _as_int64(labels)
        self._collate = collate or default_collate
        self._workers = workers
        self._tolerance = tolerance
        self.left_out: dict[int, str] = {}

    @property
    def labels(self) -> Tensor:
        """Return all labels, shape (N,), int64; reads every sample if the dataset has no `targets`."""
        if self._labels is None:
            targets = _targets(self._dataset)
            read = [_read_label(self._dataset, number) for number in range(len(self))] if targets is None else targets
            self._labels = _as_int64(read)
        return self._labels

    @property
    def notes(self) -> tuple[str, ...]:
        """Return a sentence on the unreadable samples among those read so far, if there are any."""
        if not self.left_out:
            return ()
        message = f"{len(self.left_out):,} of {len(self):,} samples cannot be read, and are left out"
        return (f"{message}: {listed(list(self.left_out.values()))}",)

    @property
    def names(self) -> Sequence[str] | None:
        """Return the names of the samples, such as files in the directory of the split; None if they have none."""
        return getattr(self._dataset, "files", None)

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, indices: Tensor | slice) -> LabelledBatch:
        """Read samples by index in this process; damaged ones are left out and counted."""
        numbers = list(range(len(self))[indices]) if isinstance(indices, slice) else indices.tolist()
        return self._accepted(_collated(self._collate, [_NeverRaising(self._dataset)[number] for number in numbers]))

    def batches(
        self, parts: Sequence[slice], *, total: int | None = None, pinned: bool = False
    ) -> Generator[LabelledBatch, None, None]:
        """Yield a batch for each part of the split in order, except for parts without a readable sample.

        Args:
            parts: Ranges of samples, one per batch.
            total: Number of samples read in total, if the parts cover only some of them; the tolerance refers to it.
            pinned: Whether batches are in pinned memory.

        Raises:
            DataError: If more samples are damaged than tolerated, a sample cannot be read for another reason, or the
                samples of a batch differ in shape.
        """
        numbers = [range(len(self))[part] for part in parts]
        count = sum(map(len, numbers)) if total is None else total
        loader = DataLoader(
            _NeverRaising(self._dataset),  # pyright: ignore[reportArgumentType]
            batch_sampler=numbers,  # pyright: ignore[reportArgumentType]
            # A daemonic process, such as a worker of a cluster, cannot start processes.
            num_workers=0 if current_process().daemon else min(self._workers, len(numbers)),
            collate_fn=partial(_collated, self._collate),
            pin_memory=pinned,
        )
        try:
            with safe_path():
                batches = iter(loader)
            for loaded in batches:
                inputs, labels = self._accepted(loaded)
                self._require_few(count)
                if len(labels):
                    yield inputs, labels
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            message = "a process that reads samples was killed, perhaps because memory or /dev/shm is full"
            raise DataError(f"{message}; lower `data_workers=`, or set `data_workers=0`") from error
        finally:
            # The traceback of an error refers to this frame, and as long as it exists the processes would stay.
            batches = None

    def leave_out(self, reasons: Mapping[int, str], total: int) -> None:
        """Add samples that another process could not read.

        Args:
            reasons: Why each of them cannot be read, by its index.
            total: Number of samples read in total.

        Raises:
            DataError: If more samples are damaged than tolerated.
        """
        self.left_out |= reasons
        self._require_few(total)

    def _accepted(self, loaded: Any) -> LabelledBatch:
        if isinstance(loaded, DataError):
            raise loaded
        batch, damaged = loaded
        self.left_out |= {sample.number: str(sample) for sample in damaged}
        if batch is None:
            return torch.empty(0), torch.empty(0, dtype=torch.int64)
        return _split_batch(batch)

    def _require_few(self, count: int) -> None:
        damaged = self.left_out
        if len(damaged) > self._tolerance * count:
            message = f"{len(damaged)} of {count} samples cannot be read, more than {self._tolerance:.0%}"
            raise DataError(f"{message}: {listed(list(damaged.values()))}")


@dataclass(frozen=True)
class _NeverRaising:
    """A dataset that returns an `Unreadable` or a DataError in place of a sample instead of raising."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except Unreadable as damage:
            damage.number = number
            return damage
        except DataError as error:
            return DataError(str(error))
        except Exception as error:
            # An exception that crosses processes becomes a page of text; this one keeps its line.
            return _failure(f"sample {number}: {type(error).__name__}: {error}")


def _collated(collate: Collate, samples: list[Any]) -> tuple[Any, list[Unreadable]] | DataError:
    """Return the batch of the readable samples, None without any, and the damaged ones; or the first failure."""
    failed = next((sample for sample in samples if isinstance(sample, DataError)), None)
    if failed is not None:
        return failed
    damaged = [sample for sample in samples if isinstance(sample, Unreadable)]
    readable = [sample for sample in samples if not isinstance(sample, Unreadable)]
    try:
        return (collate(readable) if readable else None), damaged
    except DataError as error:
        return DataError(str(error))
    except Exception as error:
        return _failure(f"samples do not make a batch: {last_line(error)}")


def _failure(message: str) -> DataError:
    """Return an error to raise in the main process, with the traceback of the present exception as a note."""
    error = DataError(message)
    error.add_note(traceback.format_exc())
    return error


def _split_batch(batch: Any) -> LabelledBatch:
    """Split a collated batch, a pair or a mapping that contains the labels, into inputs and labels."""
    if isinstance(batch, Mapping):
        name = _label_name(batch)
        inputs: Inputs = {key: torch.as_tensor(value) for key, value in batch.items() if key != name}
        return inputs, _as_int64(batch[name])
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError("samples are neither (input, label) nor mappings with a label")
    inputs, labels = batch
    if isinstance(inputs, Mapping):
        return {key: torch.as_tensor(value) for key, value in inputs.items()}, _as_int64(labels)
    return torch.as_tensor(inputs), _as_int64(labels)


def _read_label(dataset: Any, number: int) -> int:
    sample = _NeverRaising(dataset)[number]
    if isinstance(sample, DataError):
        raise sample
    try:
        label = sample[_label_name(sample)] if isinstance(sample, Mapping) else sample[1]
        if isinstance(label, float) or (isinstance(label, np.ndarray | Tensor) and label.ndim == 0):
            label = as_labels(np.asarray(label), f"sample {number}: label")
        return int(label)
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"sample {number} is neither (input, label) nor a mapping with a label") from error


def _label_name(sample: Mapping[str, Any]) -> str:
    name = next((name for name in LABEL_NAMES if name in sample), None)
    if name is None:
        raise DataError(f"samples have no {' or '.join(LABEL_NAMES)}, but {', '.join(map(str, sample))}")
    return name


def _targets(dataset: Any) -> Any:
    """Return all labels that a dataset knows without reading its samples, else None."""
    if isinstance(dataset, Subset):
        targets = _targets(dataset.dataset)
        return None if targets is None else np.asarray(targets)[np.asarray(dataset.indices)]
    return None if transforms_labels(dataset) else getattr(dataset, "targets", None)


def transforms_labels(dataset: Any) -> bool:
    """Return whether a dataset, as those of torchvision may, changes the labels that its attributes list."""
    return any(getattr(part, "target_transform", None) for part in (dataset, getattr(dataset, "transforms", None)))


def _as_int64(labels: Any) -> Tensor:
    return as_labels(labels).to(torch.int64)
