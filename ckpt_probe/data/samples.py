"""Labelled samples in named splits, handed out in batches that a model can take."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.arrays import as_labels, as_tensor


class Split(Protocol):
    """One split: its labels, and batches of (inputs, labels) on the CPU."""

    @property
    def labels(self) -> Tensor:
        """All labels, (N,) int64."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Inputs (n, …) and labels (n,) of the samples named."""
        ...


@dataclass(frozen=True)
class LabelledData:
    """Splits by name, the number of classes, and the shape of one sample."""

    name: str
    splits: dict[str, Split]
    classes: int
    input_shape: tuple[int, ...]
    arguments: dict[str, Any] = field(default_factory=dict)

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
        inputs = self._inputs[indices]
        if inputs.dtype == torch.uint8:
            return inputs.to(torch.float32).div_(255), self._labels[indices]
        kind = torch.float32 if inputs.is_floating_point() else torch.int64
        return inputs.to(kind), self._labels[indices]


class DatasetSplit:
    """A split from a map-style dataset (`len` and `[i]` → (input, label)), read sample by sample."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._labels: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """All labels, (N,) int64; reads every sample once where the dataset has no `targets` of its own."""
        if self._labels is None:
            targets = getattr(self._dataset, "targets", None)
            found = targets if targets is not None else [int(self._dataset[i][1]) for i in range(len(self))]
            self._labels = torch.as_tensor(np.asarray(found)).to(torch.int64)
        return self._labels

    def __len__(self) -> int:
        return len(self._dataset)

    def batch(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Inputs (n, …) and labels (n,) of the samples named."""
        numbers = range(len(self))[indices] if isinstance(indices, slice) else indices.tolist()
        pairs = [self._dataset[number] for number in numbers]
        inputs = torch.stack([torch.as_tensor(pair[0]) for pair in pairs])
        return inputs, torch.tensor([int(pair[1]) for pair in pairs])


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
