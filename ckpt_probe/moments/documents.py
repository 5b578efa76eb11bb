"""Numbers of the documents of a stream of rows, such as the positions of texts: one document is in memory at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.entropy import entropy_of_gram
from ckpt_probe.metrics.rows import Array, as_tensor, centred, directions, near_one, smaller_gram

ENTROPY, CENTRED, CURVATURE = "entropy", "centred_entropy", "curvature"
NUMBERS = (ENTROPY, CENTRED, CURVATURE)
"""Numbers of each document."""

FEWEST_DOCUMENTS = 8
"""Documents below which a mean over documents has no standard error."""

EQUAL = 1e-9
"""Relative spread up to which values are equal up to rounding."""

REASONS = {
    ENTROPY: "no document has a row of non-zero length",
    CENTRED: "no document has two different rows",
    CURVATURE: "no document has rows of three successive positions",
}


@dataclass(frozen=True)
class DocumentNumbers:
    """Numbers of each of K documents, (K,) float64, NaN where a number is undefined.

    Attributes:
        values: Arrays by name, one for each of `NUMBERS`.
        oversized: Number of documents whose rows do not fit into the memory limit, which have no numbers.
    """

    values: Mapping[str, Tensor]
    oversized: int = 0

    @property
    def count(self) -> int:
        """Number of documents K."""
        return len(self.values[ENTROPY])

    def defined(self, name: str) -> Tensor:
        """Return the numbers of the documents that have one, (k,)."""
        values = self.values[name]
        return values[~values.isnan()]

    def mean(self, name: str) -> float | None:
        """Return the mean over documents; None if no document has the number."""
        known = self.defined(name)
        return float(known.mean()) if len(known) else None

    @property
    def means(self) -> dict[str, float | str]:
        """Return the mean over documents of each number, or the reason why it is undefined."""
        if self.oversized:
            return dict.fromkeys(NUMBERS, f"{self.oversized} documents have more rows than the memory budget allows")
        means = {name: self.mean(name) for name in NUMBERS}
        return {name: REASONS[name] if mean is None else mean for name, mean in means.items()}

    def effective_rank(self) -> float | None:
        """Return the exponential of the mean entropy of centred rows (Wei et al. 2024); None if no document has one."""
        mean = self.mean(CENTRED)
        return None if mean is None else math.exp(mean)


def error_of_mean(values: Tensor) -> float | None:
    """Return the standard error s / √k of the mean of values (k,) of documents; None for few or equal values."""
    if len(values) < FEWEST_DOCUMENTS:
        return None
    spread = float(values.std())
    return spread / math.sqrt(len(values)) if spread > EQUAL * float(values.abs().max()) else None


def errors_of_documents(
    numbers: DocumentNumbers, reference: DocumentNumbers | None
) -> dict[str, tuple[float | None, float | None]]:
    """Return standard error and bias of every metric of documents by its name; None for few or equal documents.

    A mean over documents has no bias. That of the exponential of a mean h with standard error s is exp(h) s²/2.

    Args:
        numbers: Numbers of the documents.
        reference: Those of the reference dump for the same documents, or None.
    """
    errors: dict[str, tuple[float | None, float | None]] = {}
    for metric, name in (("documents.entropy", ENTROPY), ("documents.curvature", CURVATURE)):
        error = error_of_mean(numbers.defined(name))
        errors[metric] = error, None if error is None else 0.0
    errors["erank.documents"] = _error_of_rank(numbers)
    if reference is None:
        return errors
    pairs = [(known.effective_rank() or math.nan) * known.values[CENTRED] for known in (reference, numbers)]
    both = pairs[0] - pairs[1] if len(pairs[0]) == len(pairs[1]) else torch.empty(0)
    error, biases = error_of_mean(both[~both.isnan()]), [_error_of_rank(known)[1] for known in (reference, numbers)]
    bias = None if error is None or None in biases else (biases[0] or 0.0) - (biases[1] or 0.0)
    errors["erank.documents_difference"] = error, bias
    return errors


def _error_of_rank(numbers: DocumentNumbers) -> tuple[float | None, float | None]:
    error, rank = error_of_mean(numbers.defined(CENTRED)), numbers.effective_rank()
    return (None, None) if error is None or rank is None else (rank * error, rank * error**2 / 2)


class Documents:
    """Computes numbers of documents from a stream of rows, in which the rows of a document follow one another.

    Args:
        memory: Largest size of the rows of one document in bytes.
    """

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._numbers: dict[str, list[float]] = {name: [] for name in NUMBERS}
        self._rows: list[Tensor] = []
        self._positions: list[Tensor] = []
        self._last = -1
        self._oversized = 0
        self._drops = False

    def update(self, features: Array, documents: Array, positions: Array) -> None:
        """Add the next rows.

        Args:
            features: Rows, (n, D).
            documents: Index of the document of each row, (n,), which never decreases.
            positions: Position of each row in its document, (n,).

        Raises:
            DataError: If the rows of a document do not follow one another.
        """
        rows, places = as_tensor(features, "features").detach().cpu(), as_tensor(positions, "positions").cpu()
        indices, sizes = torch.unique_consecutive(as_tensor(documents, "documents").cpu(), return_counts=True)
        for index, part, where in zip(
            indices.tolist(), rows.split(sizes.tolist()), places.split(sizes.tolist()), strict=True
        ):
            if index < self._last:
                raise DataError(f"documents: rows of document {index} come after those of document {self._last}")
            if index > self._last:
                self._close()
                self._last, self._drops = index, False
            if self._drops:
                continue
            self._rows.append(part)
            self._positions.append(where)
            if 8 * sum(map(len, self._rows)) * rows.shape[1] > self._memory:
                self._rows, self._positions, self._drops = [], [], True
                self._oversized += 1

    def finish(self) -> DocumentNumbers:
        """Return the numbers of all documents after the last row."""
        self._close()
        values = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in self._numbers.items()}
        return DocumentNumbers(values, self._oversized)

    def _close(self) -> None:
        """Compute the numbers of the document whose rows are in memory."""
        if not self._rows:
            return
        rows, positions = torch.cat(self._rows).to(torch.float64), torch.cat(self._positions)
        self._rows, self._positions = [], []
        numbers = (document_entropy(rows), centred_entropy(rows), curvature(rows, positions))
        for name, number in zip(NUMBERS, numbers, strict=True):
            self._numbers[name].append(math.nan if number is None else float(number))


def joined_documents(parts: list[DocumentNumbers]) -> DocumentNumbers:
    """Return the numbers of the documents of several streams, one after another."""
    values = {name: torch.cat([part.values[name] for part in parts]) for name in NUMBERS}
    return DocumentNumbers(values, sum(part.oversized for part in parts))


def document_entropy(rows: Tensor) -> Tensor | None:
    """Return the entropy (nats, 0-d) of K / tr K with K = X Xᵀ; None if all rows have zero length.

    Skean et al. 2025, arXiv 2502.02013, the entropy of a prompt of order 1. Rows are not scaled to unit length, so that
    a long one counts more.

    Args:
        rows: Rows of the document's positions, (T, D), float64.
    """
    return entropy_of_gram(smaller_gram(near_one(rows))) if bool(rows.any()) else None


def centred_entropy(rows: Tensor) -> Tensor | None:
    """Return the entropy (nats, 0-d) of the directions of rows minus their mean; None if all rows are equal.

    Wei et al. 2024, arXiv 2401.17139: its exponential is the effective rank of a document.

    Args:
        rows: Rows of the document's positions, (T, D), float64.
    """
    unit, _ = directions(centred(rows))
    return entropy_of_gram(smaller_gram(unit), n=len(unit)) if len(unit) else None


def curvature(rows: Tensor, positions: Tensor | None = None) -> Tensor | None:
    """Return the mean angle (radians, 0-d) between successive steps x_{t+1} − x_t; None without two steps.

    Hosseini and Fedorenko 2023, as Skean et al. 2025 use it. Steps of zero length have no direction and are left out.

    Args:
        rows: Rows of the document's positions, (T, D), float64.
        positions: Position of each row in the document, (T,); 0 … T−1 if None. Only neighbours make a step.
    """
    steps = near_one(rows).diff(dim=0)
    unit = torch.zeros_like(steps)
    directed, moves = directions(steps)
    unit[moves] = directed
    if positions is not None:
        moves = moves & (positions.diff() == 1)
    cosines = (unit[1:] * unit[:-1]).sum(dim=1)[moves[1:] & moves[:-1]]
    return torch.arccos(cosines.clamp(-1, 1)).mean() if len(cosines) else None
