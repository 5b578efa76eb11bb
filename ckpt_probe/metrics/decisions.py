"""Which of C linear scores is the highest, for many rows and many classes: fast products, exact decisions."""

from collections.abc import Callable

import torch
from torch import Tensor

from ckpt_probe.metrics.rounding import rounding, row_lengths

FEW = 128
"""Classes up to which float64 products cost less than looking for near ties."""

ROWS, COLUMNS, GROUP = 1024, 2048, 64
"""Rows and classes whose scores are at hand at once, 8 MB; classes of which at first only the highest is sought."""

SHORT, LONG = 1e-12, 1e12
"""Lengths of rows of which float32 keeps the squares whole."""

EXACT_BYTES = 2**22
"""What rows in float64, or their scores, take at once: what the processor's cache holds with room to spare."""


class LinearDecision:
    """argmax over classes of w_c·z + b_c for rows z, as float64 finds it.

    Scores come from float32 products. Where the two highest of a row are closer than rounding can take them apart
    (|fl(x·y) − x·y| ≤ γ_D |x|·|y|, Higham 2002, section 3.1), that row's scores are computed again in float64, so that
    speed costs no digit. weights: (C, D), finite; bias: (C,) or None. settle: decides rows (n, D) that even float64
    scores leave open, where there is another way to.
    """

    def __init__(
        self,
        weights: Tensor,
        bias: Tensor | None = None,
        settle: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._weights = weights.to(torch.float64)
        self._bias = None if bias is None else bias.to(torch.float64)
        self._settle = settle
        if len(weights) > FEW:
            self._prepare()

    def of(self, rows: Tensor) -> Tensor:
        """The class of each of (n, D) rows, (n,)."""
        if len(self._weights) <= FEW or not len(rows):
            return self._exactly(rows)
        return torch.cat([self._quickly(part) for part in rows.split(ROWS)])

    def _prepare(self) -> None:
        classes, features = self._weights.shape
        # Powers of two change no digit; weights and biases of any magnitude are then near 1.
        self._size, self._bias_size = _power_of_two(self._weights), 1.0
        extended = self._weights.new_zeros(classes, features + 1, dtype=torch.float32)
        extended[:, :features] = self._weights / self._size
        if self._bias is not None:
            self._bias_size = _power_of_two(self._bias)
            extended[:, features] = self._bias / self._bias_size
        self._extended = extended
        self._longest = float(torch.linalg.vector_norm(extended[:, :features], dim=1).max())
        self._rounding = 1.01 * 2 * (features + 4) * torch.finfo(torch.float32).eps / 2

    def _quickly(self, rows: Tensor) -> Tensor:
        scaled, uncertain = self._scaled(rows)
        best, second = (scaled.new_full((len(rows),), -torch.inf) for _ in range(2))
        found = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        buffer = scaled.new_empty(len(rows), min(COLUMNS, -(-len(self._extended) // GROUP) * GROUP))
        for start in range(0, len(self._extended), COLUMNS):
            part = self._extended[start : start + COLUMNS]
            width = -(-len(part) // GROUP) * GROUP
            scores = buffer[:, :width]
            scores[:, len(part) :] = -torch.inf
            torch.mm(scaled, part.T, out=scores[:, : len(part)])
            first, place, next_one = _two_highest(scores)
            second = torch.maximum(torch.maximum(second, next_one), torch.minimum(best, first))
            found = torch.where(first > best, place + start, found)
            best = torch.maximum(best, first)
        again = ~(best - second > uncertain)
        if bool(again.any()):
            found[again] = self._exactly(rows[again])
        return found

    def _scaled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of unit length in float32 with the bias's factor beside them, and what rounding may do to a score."""
        if rows.dtype != torch.float64:
            rows = rows.to(torch.float32)
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        scaled = rows.new_empty(len(rows), rows.shape[1] + 1, dtype=torch.float32)
        torch.div(rows, lengths, out=scaled[:, :-1])
        factor = self._bias_size / (lengths.double() * self._size) if self._bias is not None else lengths * 0
        scaled[:, -1:] = factor
        uncertain = self._rounding * (self._longest + scaled[:, -1])
        # Squares of other lengths underflow or overflow, and a row of zeros has none.
        safe = ((lengths > SHORT) & (lengths < LONG)).squeeze(1)
        return scaled, torch.where(safe, uncertain, torch.inf)

    def _exactly(self, rows: Tensor) -> Tensor:
        at_once = max(64, EXACT_BYTES // (8 * max(self._weights.shape)))
        found = []
        for part in rows.split(at_once):
            part = part.to(torch.float64)
            scores = part @ self._weights.T
            scores = scores if self._bias is None else scores.add_(self._bias)
            best = scores.argmax(dim=1)
            if self._settle is not None and scores.shape[1] > 1:
                close = self._close(scores, part)
                if len(close):
                    best[close] = self._settle(part[close])
            found.append(best)
        return torch.cat(found)

    def _close(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Return which rows (n, D) have two scores (n, C) that rounding does not tell apart, their positions."""
        highest, features = scores.topk(2, dim=1).values, rows.shape[1]
        longest, bias = row_lengths(self._weights).max(), 0.0 if self._bias is None else self._bias.abs().max()
        apart = highest[:, 0] - highest[:, 1]
        # No row is longer than all of them together: lengths are only needed of rows that this leaves open.
        most = longest * torch.linalg.matrix_norm(rows) + bias
        close = (~(apart > 2 * rounding(features + 2, most))).nonzero().squeeze(1)
        if not len(close):
            return close
        return close[~(apart[close] > 2 * rounding(features + 2, row_lengths(rows[close]) * longest + bias))]


def _two_highest(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row (n, k·GROUP): the highest score, where it stands, and the next one (equal where it occurs twice)."""
    rows = torch.arange(len(scores), device=scores.device)
    groups = scores.unflatten(1, (-1, GROUP))
    tops = groups.amax(dim=2)
    group = tops.argmax(dim=1)
    inside = groups[rows, group]
    best, place = inside.max(dim=1)
    # With the highest one gone, the next is that of its own group or of all others.
    tops[rows, group] = inside[rows, place] = -torch.inf
    return best, group * GROUP + place, torch.maximum(tops.amax(dim=1), inside.amax(dim=1))


def _power_of_two(values: Tensor) -> float:
    """A power of two near the largest of some finite numbers, 1 where all are zero."""
    _, exponent = torch.frexp(values.abs().max())
    return 2.0 ** int(exponent)
