"""Labelled samples in named splits, handed out in batches that a model can take."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError, listed
from ckpt_probe.metrics.arrays import as_labels, as_tensor

Inputs = Tensor | Mapping[str, Tensor]
"""What a model takes of n samples: one tensor (n, …), or several by the names of its arguments, each (n, …)."""

Batch = tuple[Inputs, Tensor]
"""Inputs of n samples, and their labels: (n,) int64, or (n, positions) where each position of a sample has one."""

LEFT_OUT = -100
"""The label of a position that is no row, as frameworks mark padding."""

LENGTHS = "lengths before padding"
"""The name, among the inputs of a batch, of the lengths (n,) of its samples, padded to the longest."""

UNLABELLED = -1
"""The label of a sample that has none."""

LOOKED_THROUGH = (16, 256, 4096)
"""How far `first_samples` looks for samples that can be read."""


@runtime_checkable
class Split(Protocol):
    """One split: its labels, and batches of (inputs, labels) on the CPU."""

    @property
    def labels(self) -> Tensor:
        """All labels, (N,) int64."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor | slice) -> Batch:
        """Inputs and labels of the samples named, less those that cannot be read."""
        ...


@runtime_checkable
class Streaming(Protocol):
    """A split that makes its batches ready by itself, and may find that some of its samples cannot be read."""

    @property
    def left_out(self) -> Mapping[int, str]:
        """Samples that could not be read so far, by number: which, and why."""
        ...

    def batches(
        self, parts: Sequence[slice], *, of: int | None = None, pinned: bool = False
    ) -> Generator[Batch, None, None]:
        """A batch for each part of the split in order, in pinned memory where asked for; none where all are damaged.

        of: how many samples the parts are some of, where they are not all that is read.
        """
        ...

    def leave_out(self, found: Mapping[int, str], of: int) -> None:
        """Count samples that another process could not read, of so many that are read. Errors as `batches`."""
        ...


@dataclass(frozen=True)
class LabelledData:
    """Splits by name, the number of classes (0 without labels), and the shape of one sample (that of tokens, ()).

    class_names: names of the first classes, where they have any. notes: what was left out while loading, one sentence
    each. padding: the number of the token with which texts are padded. `arguments` build the same data again, whatever
    model they were first loaded for. preparation: how images become inputs, with the source of each step.
    """

    name: str
    splits: dict[str, Split]
    classes: int
    input_shape: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    preparation: str = ""
    padding: int | None = None

    @property
    def labelled(self) -> bool:
        """Whether samples have labels."""
        return self.classes > 0

    def split(self, name: str) -> Split:
        """One split. Raises DataError where there is none of that name."""
        if name not in self.splits:
            raise DataError(f"{self.name}: no split {name!r}; there are: {', '.join(self.splits)}")
        return self.splits[name]


class ArraySplit:
    """A split held in memory: inputs (N, …), labels (N,).

    Images of uint8 are handed out as float32 in [0, 1]; floating inputs as float32; other whole numbers as int64.
    """

    def __init__(self, inputs: Any, labels: Any) -> None:
        self._inputs = as_tensor(inputs, "inputs")
        self._labels = as_labels(labels).to(torch.int64)
        if self._inputs.ndim < 2 or self._labels.ndim != 1 or len(self._inputs) != len(self._labels):
            shapes = f"{tuple(self._inputs.shape)} and {tuple(self._labels.shape)}"
            raise DataError(f"inputs and labels: expected (N, …) and (N,), found {shapes}")

    @property
    def inputs(self) -> Tensor:
        """All inputs as they are held, (N, …)."""
        return self._inputs

    @property
    def labels(self) -> Tensor:
        """All labels, (N,) int64."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Inputs (n, …) and labels (n,) of the samples named."""
        return as_handed_out(self._inputs[indices]), self._labels[indices]


def one_tensor(inputs: Inputs, who: str) -> Tensor:
    """Inputs that are one tensor. Raises DataError where they are several, opening with `who`, who takes none such."""
    if isinstance(inputs, Tensor):
        return inputs
    raise DataError(f"{who} takes data whose inputs are one tensor; these are {', '.join(inputs)}")


def as_handed_out(inputs: Tensor) -> Tensor:
    """Inputs of a batch as models take them: uint8 as float32 in [0, 1], floats as float32, whole numbers as int64."""
    if inputs.dtype == torch.uint8:
        return inputs.to(torch.float32).div_(255)
    return inputs.to(torch.float32 if inputs.is_floating_point() else torch.int64)


def taken_apart(inputs: Inputs) -> tuple[Inputs, Tensor | None]:
    """Return the inputs that a model takes, and the lengths (n,) of samples that are padded, None if none is."""
    if isinstance(inputs, Tensor) or LENGTHS not in inputs:
        return inputs, None
    return {name: tensor for name, tensor in inputs.items() if name != LENGTHS}, inputs[LENGTHS]


def first_samples(split: Split, count: int) -> Batch:
    """Read at least `count` samples from the start of a split, or all if it has fewer, as a model takes them.

    More than those are read only if some of them cannot be.

    Raises:
        DataError: If none of the first 4,096 can be read.
    """
    for size in (count, *LOOKED_THROUGH):
        inputs, labels = split.batch(slice(0, size))
        if len(labels) >= count or size >= len(split):
            break
    if not len(labels):
        reasons = list(split.left_out.values()) if isinstance(split, Streaming) else []
        told = f"none of the first {min(size, len(split))} samples can be read"
        raise DataError(f"{told}: {listed(reasons, 3)}")
    return taken_apart(inputs)[0], labels


def notes_of(split: Split) -> tuple[str, ...]:
    """What is to be said of the samples of a split read so far, such as how many were left out."""
    return tuple(getattr(split, "notes", ()))


def sample_shape(inputs: Inputs) -> tuple[int, ...]:
    """The shape of one sample of a batch; () where inputs go by names, whose lengths differ from batch to batch."""
    return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else ()


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (first, second): in every class the same `fraction` goes to the second, chosen by `seed`, in order.

    Raises DataError where the fraction is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise DataError(f"test_fraction: expected a number between 0 and 1, found {fraction}")
    generator = np.random.default_rng(seed)
    second = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        second[generator.permutation(members)[: round(fraction * len(members))]] = True
    return np.flatnonzero(~second), np.flatnonzero(second)
