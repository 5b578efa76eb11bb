"""A fixed subset of rows, balanced by class or drawn by documents, from which standard errors are computed.

Each row has a random priority that depends on its index and the seed alone. The subset is therefore equal for every
checkpoint and layer, whatever the sizes of blocks, the order of merges and the device.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError

SUBSET_ROWS = 2048
"""Default number of rows of a subset."""

ROWS_PER_DOCUMENT = 8
"""Rows of each document that are drawn before a second batch of rows of any document is."""

PREFIX = "subset."

OF_ROWS = ("features", "labels", "indices", "halves", "documents", "document_rows")
"""Names of the tensors of a subset, with an entry for each row; the last two only if documents are known."""


def priorities(numbers: Tensor, seed: int) -> np.ndarray:
    """Return a random number for each index or document number (n,), by the mixing function of SplitMix64."""
    with np.errstate(over="ignore"):
        x = numbers.cpu().numpy().astype(np.uint64) + np.uint64(seed % 2**64) * np.uint64(0xD1342543DE82EF95)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x + np.uint64(0x9E3779B97F4A7C15)) if shift == 30 else x
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return x ^ (x >> np.uint64(31))


def halves_of(labels: Tensor, documents: Tensor | None, counts: Iterable[Tensor]) -> Tensor:
    """Return the half, 0 or 1, of each row of a block, (n,): alternately within each class, or by document.

    Args:
        labels: Labels of the rows, (n,).
        documents: Documents of the rows, (n,), or None.
        counts: Numbers of earlier rows of each class, (C,), to be added up.
    """
    if documents is not None:
        return torch.from_numpy((priorities(documents, 0) & 1).astype("int64")).to(labels.device)
    before = torch.zeros(int(labels.max()) + 1, dtype=torch.int64, device=labels.device)
    for earlier in counts:
        before[: len(earlier)] += earlier[: len(before)].to(before.device)
    return (before[labels] + ranks_in_classes(labels)) % 2


def ranks_in_classes(labels: Tensor) -> Tensor:
    """Return the number of earlier rows of the class of each row, (n,), for labels (n,)."""
    order, sizes = torch.argsort(labels, stable=True), torch.bincount(labels)
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes)[labels[order]]
    return ranks


class RowSubset:
    """At most `size` rows of a stream: as many of each class, or of each document where documents are known.

    Rows of a class are ranked by their priority, and the rows of the lowest ranks are selected. Documents are ranked by
    their own priority, and contribute `ROWS_PER_DOCUMENT` rows each before one of them contributes more. A row that is
    not selected can never be selected later, so that selections can be merged.

    Args:
        size: Largest number of rows.
        seed: Seed of the priorities.

    Attributes:
        features: Selected rows, (m, D), in order of their indices.
        labels: Their labels, (m,), on the CPU as all following ones.
        indices: Their absolute indices, (m,).
        halves: 0 or 1 for the half to which each row belongs, (m,).
        documents: Their documents, (m,), or None.
        document_rows: Number of rows of the document of each row, (m,), or None.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self.seed = seed
        self.features = torch.empty(0, 0)
        self.labels = self.indices = self.halves = torch.empty(0, dtype=torch.int64)
        self.documents: Tensor | None = None
        self.document_rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def update(
        self, features: Tensor, labels: Tensor, indices: Tensor, halves: Tensor, documents: Tensor | None
    ) -> None:
        """Add a block of rows.

        Args:
            features: Rows, (n, D).
            labels: Labels, (n,).
            indices: Absolute indices of the rows, (n,).
            halves: Half of each row, (n,).
            documents: Document of each row, (n,), or None; either all blocks have documents or none.

        Raises:
            DataError: If only some of the blocks have documents.
        """
        rows = {"features": features, "labels": labels.cpu(), "indices": indices.cpu(), "halves": halves.cpu()}
        if documents is not None:
            rows |= {"documents": documents.cpu(), "document_rows": torch.ones(len(labels), dtype=torch.int64)}
        self._add(rows, complete=False)

    def merge(self, other: "RowSubset") -> None:
        """Add the rows of another subset with equal size and seed."""
        if len(other) and (self.size, self.seed) != (other.size, other.seed):
            raise DataError("moments whose subsets have different sizes or seeds cannot be merged")
        if len(other):
            self._add(other._rows(), complete=True)

    def state(self) -> dict[str, Tensor]:
        """Return the subset as tensors by name, for `load`."""
        return {PREFIX + name: tensor for name, tensor in self._rows().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace the rows by those of a state; the settings do not change."""
        self.features = state[PREFIX + "features"]
        for name in OF_ROWS[1:]:
            tensor = state.get(PREFIX + name)
            setattr(self, name, None if tensor is None else tensor.cpu())

    def _rows(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in OF_ROWS if getattr(self, name) is not None}

    def _add(self, new: Mapping[str, Tensor], *, complete: bool) -> None:
        """Add rows by the names of the attributes; `complete` as `_rows_of_documents`."""
        before = len(self)
        mine = self._rows() if before else {name: values[:0] for name, values in new.items()}
        if mine.keys() != new.keys():
            raise DataError("documents: pass the document of every row, or of none")
        joined = {name: torch.cat([mine[name], new[name]]) for name in OF_ROWS[1:] if name in new}
        if "documents" in new:
            joined["document_rows"] = _rows_of_documents(mine, new, complete=complete)
        chosen = self._chosen(joined)
        for name, values in joined.items():
            setattr(self, name, values[chosen])
        retained, added = chosen < before, chosen >= before
        features = new["features"][(chosen[added] - before).to(new["features"].device)].detach()
        self.features = (
            _interleaved(self.features, features, chosen[retained], retained) if before else features.clone()
        )

    def _chosen(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Return the positions of the selected rows, in order of their indices."""
        of_rows = priorities(rows["indices"], self.seed)
        groups = rows.get("documents", rows["labels"]).numpy()
        order = np.lexsort((of_rows, groups))
        first = np.r_[True, groups[order][1:] != groups[order][:-1]]
        starts = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = np.arange(len(order)) - starts
        if "documents" in rows:
            of_group = priorities(rows["documents"], self.seed + 1)
            selected = np.lexsort((ranks, of_group, ranks // ROWS_PER_DOCUMENT))[: self.size]
        else:
            selected = np.lexsort((of_rows, ranks))[: self.size]
        indices = rows["indices"].numpy()
        return torch.from_numpy(selected[np.argsort(indices[selected], kind="stable")])


def _rows_of_documents(mine: Mapping[str, Tensor], new: Mapping[str, Tensor], *, complete: bool) -> Tensor:
    """Return the number of rows of the document of each row of both, (n,).

    Args:
        mine: Selected rows, with "documents", and in "document_rows" the numbers of rows of these.
        new: New rows likewise, where "document_rows" is 1.
        complete: Whether the new rows are a subset too, so that it is the number of rows of the document.
    """
    documents, each = torch.unique(torch.cat([mine["documents"], new["documents"]]), return_inverse=True)
    before = len(mine["documents"])
    first, second = torch.zeros(len(documents), dtype=torch.int64), torch.zeros(len(documents), dtype=torch.int64)
    first[each[:before]] = mine["document_rows"]
    if complete:
        second[each[before:]] = new["document_rows"]
    else:
        second.index_add_(0, each[before:], new["document_rows"])
    return (first + second)[each]


def _interleaved(old: Tensor, new: Tensor, positions: Tensor, retained: Tensor) -> Tensor:
    """Return old rows at `positions` and all new rows, in the order that `retained` (m,) defines."""
    if bool(retained.all()) and len(positions) == len(old) and not len(new):
        return old
    if old.dtype != new.dtype:
        dtype = torch.promote_types(old.dtype, new.dtype)
        old, new = old.to(dtype), new.to(dtype)
    rows = old.new_empty(len(retained), old.shape[1])
    mask = retained.to(old.device)
    rows[mask] = old[positions.to(old.device)]
    rows[~mask] = new.to(old.device)
    return rows
