"""A map-style dataset read sample by sample, by worker processes where there are any; what cannot be read is told."""

import os
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import current_process
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate

from ckpt_probe.children import safe_path
from ckpt_probe.data.samples import Batch, Inputs
from ckpt_probe.errors import DataError, listed
from ckpt_probe.metrics.arrays import as_labels

LABEL_NAMES = ("labels", "label")
"""Names of the label where a sample is a mapping, and of the column that holds it."""

Collate = Callable[[list[Any]], Any]


def default_workers() -> int:
    """Processes that read where nobody said how many: one fewer than this process may use, at most eight."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, processors - 1))


class Unreadable(Exception):
    """A sample is damaged: it is left out and counted."""


@dataclass(frozen=True)
class Damaged:
    """What a worker hands over in place of a sample that is left out."""

    number: int
    why: str


@dataclass(frozen=True)
class _Failed:
    """What a worker hands over where reading a sample failed in a way that ends the run."""

    told: str
    trace: str = ""

    def error(self) -> DataError:
        """What is raised where the samples are wanted, the trace in the other process as its note."""
        error = DataError(self.told)
        if self.trace:
            error.add_note(self.trace)
        return error


class DatasetSplit:
    """A split from a map-style dataset: `len`, and `[i]` → (input, label) or a mapping with `label` or `labels`.

    labels: all of them where they are known. collate: makes a batch of samples, torch's own where not given. workers:
    processes that read, none where 0. tolerance: the share of samples that may be unreadable (raise `Unreadable`);
    beyond it reading ends with a DataError that names them.
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
        self._labels = None if labels is None else _whole(labels)
        self._collate = collate or default_collate
        self._workers = workers
        self._tolerance = tolerance
        self._left_out: dict[int, str] = {}

    @property
    def labels(self) -> Tensor:
        """All labels, (N,) int64; where they are not known, nor the dataset has `targets`, every sample is read."""
        if self._labels is None:
            found = _targets(self._dataset)
            read = [_label(self._dataset, number) for number in range(len(self))] if found is None else found
            self._labels = _whole(read)
        return self._labels

    @property
    def left_out(self) -> Mapping[int, str]:
        """Samples that could not be read so far, by number: which, and why."""
        return self._left_out

    @property
    def notes(self) -> tuple[str, ...]:
        """How many of the samples read so far were damaged, and which, where some were."""
        if not self._left_out:
            return ()
        told = f"{len(self._left_out):,} of {len(self):,} samples cannot be read, and are left out"
        return (f"{told}: {listed(list(self._left_out.values()))}",)

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, indices: Tensor | slice) -> Batch:
        """Inputs and labels of the samples named, read in this process; damaged ones are left out and counted."""
        numbers = list(range(len(self))[indices]) if isinstance(indices, slice) else indices.tolist()
        return self._accepted(_Collating(self._collate)([_Numbered(self._dataset)[number] for number in numbers]))

    def batches(
        self, parts: Sequence[slice], *, of: int | None = None, pinned: bool = False
    ) -> Generator[Batch, None, None]:
        """A batch for each part of the split in order, in pinned memory where asked for; none where all are damaged.

        of: how many samples the parts are some of, where they are not all that is read. Raises DataError where more
        samples than the tolerated share are damaged, where a sample cannot be read for another reason, or samples of
        one batch do not have one shape.
        """
        numbers = [range(len(self))[part] for part in parts]
        count = sum(map(len, numbers)) if of is None else of
        loader = DataLoader(
            _Numbered(self._dataset),  # pyright: ignore[reportArgumentType]
            batch_sampler=numbers,  # pyright: ignore[reportArgumentType]
            # Whoever was started as a daemon, such as a worker of a cluster, can start no process.
            num_workers=0 if current_process().daemon else min(self._workers, len(numbers)),
            collate_fn=_Collating(self._collate),
            pin_memory=pinned,
        )
        try:
            with safe_path():
                batches = iter(loader)
            for found in batches:
                inputs, labels = self._accepted(found)
                self._require_few(count)
                if len(labels):
                    yield inputs, labels
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            told = "a process that reads samples was killed, perhaps for want of memory or of room in /dev/shm"
            raise DataError(f"{told}; take fewer by --data-workers, or 0") from error

    def leave_out(self, found: Mapping[int, str], of: int) -> None:
        """Count samples that another process could not read, of so many that are read. Errors as `batches`."""
        self._left_out |= found
        self._require_few(of)

    def _accepted(self, found: Any) -> Batch:
        if isinstance(found, _Failed):
            raise found.error()
        batch, damaged = found
        self._left_out |= {one.number: one.why for one in damaged}
        if batch is None:
            return torch.empty(0), torch.empty(0, dtype=torch.int64)
        return _parted(batch)

    def _require_few(self, count: int) -> None:
        damaged = self._left_out
        if len(damaged) > self._tolerance * count:
            told = f"{len(damaged)} of {count} samples cannot be read, more than {self._tolerance:.0%}"
            raise DataError(f"{told}: {listed(list(damaged.values()))}")


@dataclass(frozen=True)
class _Numbered:
    """Samples that never raise: a damaged or failed one is told in its place."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except Unreadable as damage:
            return Damaged(number, str(damage))
        except DataError as error:
            return _Failed(str(error))
        except Exception as error:
            # An exception that crosses processes becomes a page of text; this one keeps its line.
            return _Failed(f"sample {number}: {type(error).__name__}: {error}", traceback.format_exc())


@dataclass(frozen=True)
class _Collating:
    """Samples → (their batch or None, the damaged ones), or what failed."""

    collate: Collate

    def __call__(self, samples: list[Any]) -> tuple[Any, list[Damaged]] | _Failed:
        failed = next((one for one in samples if isinstance(one, _Failed)), None)
        if failed is not None:
            return failed
        damaged = [one for one in samples if isinstance(one, Damaged)]
        whole = [one for one in samples if not isinstance(one, Damaged)]
        try:
            return (self.collate(whole) if whole else None), damaged
        except DataError as error:
            return _Failed(str(error))
        except Exception as error:
            told = f"samples do not make a batch: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            return _Failed(told, traceback.format_exc())


def _parted(batch: Any) -> Batch:
    """Inputs and labels of a batch as collated: a pair, or a mapping that holds the labels too."""
    if isinstance(batch, Mapping):
        name = _label_name(batch)
        inputs: Inputs = {key: torch.as_tensor(value) for key, value in batch.items() if key != name}
        return inputs, _whole(batch[name])
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError("samples are neither (input, label) nor mappings with a label")
    inputs, labels = batch
    if isinstance(inputs, Mapping):
        return {key: torch.as_tensor(value) for key, value in inputs.items()}, _whole(labels)
    return torch.as_tensor(inputs), _whole(labels)


def _label(dataset: Any, number: int) -> int:
    sample = _Numbered(dataset)[number]
    if isinstance(sample, _Failed):
        raise sample.error()
    try:
        return int(sample[_label_name(sample)] if isinstance(sample, Mapping) else sample[1])
    except (IndexError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"sample {number} is neither (input, label) nor a mapping with a label") from error


def _label_name(sample: Mapping[str, Any]) -> str:
    name = next((name for name in LABEL_NAMES if name in sample), None)
    if name is None:
        raise DataError(f"samples have no {' or '.join(LABEL_NAMES)}, but {', '.join(map(str, sample))}")
    return name


def _targets(dataset: Any) -> Any:
    """All labels that a dataset knows without reading its samples; None where it does not."""
    if isinstance(dataset, Subset):
        found = _targets(dataset.dataset)
        return None if found is None else np.asarray(found)[np.asarray(dataset.indices)]
    return getattr(dataset, "targets", None)


def _whole(labels: Any) -> Tensor:
    return as_labels(labels).to(torch.int64)
