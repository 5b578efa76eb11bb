"""The joint matrix as a linear map: K1 ⊙ K2 / N applied to vectors by sums over classes, never formed."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ckpt_probe.moments.grouping import Rows, Stack, stacks, unit_blocks


class JointOperator:
    """x ↦ (K1 ⊙ K2) x / N, since its row i is ẑ_i · Σ_c G[y_i, c] (Σ_{j in c} ẑ_j x_j), G = Ŵ Ŵᵀ.

    rows: the features again; heads: unit classifier rows (C, D); samples: how many rows have a direction, N. The rows
    are held in float32 where they fit half of `memory` bytes, else read again for each product. Products are in
    float32, everything that is summed over steps and probes in float64.
    """

    def __init__(self, rows: Rows, heads: Tensor, samples: int, *, memory: int) -> None:
        self._rows = rows
        self._heads = heads.to(torch.float32)
        self._samples = samples
        self._memory = memory
        self._factored = 2 * heads.shape[1] < heads.shape[0]
        self._gram = heads if self._factored else (heads @ heads.T)
        self._gram = self._gram.to(torch.float32)
        fits = 2 * 4 * samples * heads.shape[1] <= memory // 2
        self._held = self._gathered() if fits else None

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, b) float64 → (N, b) float64."""
        classes, features = self._heads.shape
        columns = max(1, self._memory // 8 // (4 * 3 * classes * features))
        parts = [self._apply(part) for part in x.to(torch.float32).split(columns, dim=1)]
        return torch.cat(parts, dim=1)

    def _apply(self, x: Tensor) -> Tensor:
        classes, features = self._heads.shape
        columns = x.shape[1]
        padded = torch.cat([x, x.new_zeros(1, columns)])
        sums = x.new_zeros(classes, features, columns)
        for stack in self._stacks():
            sums[stack.classes] += torch.bmm(stack.rows.mT, padded[stack.places])
        mixed = self._mix(sums.reshape(classes, features * columns)).reshape(classes, features, columns)
        image = torch.empty_like(padded)
        for stack in self._stacks():
            image[stack.places] = torch.bmm(stack.rows, mixed[stack.classes])
        return image[:-1].to(torch.float64) / self._samples

    def _mix(self, sums: Tensor) -> Tensor:
        return self._gram @ (self._gram.T @ sums) if self._factored else self._gram @ sums

    def _stacks(self) -> Iterable[Stack]:
        return self._held if self._held is not None else self._read()

    def _read(self) -> Iterator[Stack]:
        first = 0
        for unit, labels in unit_blocks(self._rows, self._heads.device, torch.float32):
            yield from stacks(unit, labels, first=first, total=self._samples)
            first += len(labels)

    def _gathered(self) -> list[Stack]:
        blocks = list(unit_blocks(self._rows, self._heads.device, torch.float32))
        rows, labels = (torch.cat([block[i] for block in blocks]) for i in (0, 1))
        del blocks
        return list(stacks(rows, labels))
