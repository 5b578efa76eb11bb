"""Class of the highest of C linear scores, or of the nearest of C means: fast products, exact decisions."""

from collections.abc import Callable

import torch
from torch import Tensor

from ckpt_probe.metrics.rows import EPSILON, largest, power_of_two, row_lengths

FEW = 128
"""Number of classes up to which float64 products cost less than the search for near ties."""

ROWS, COLUMNS, GROUP = 1024, 2048, 64
"""Rows and classes of a block of scores (8 MB), and classes of a group, of which the highest score is found first."""

SHORT, LONG = 1e-12, 1e12
"""Lengths of rows whose squares neither underflow nor overflow in float32."""

EXACT_BYTES = 2**22
"""Bytes of float64 rows, or of their scores, that are processed at a time; they fit into the processor's cache."""


class LinearDecision:
    """Computes argmax over classes of w_c·z + b_c for rows z, with the result of float64.

    Scores are computed by float32 products. If the two highest scores of a row are closer than their rounding
    (|fl(x·y) − x·y| ≤ γ_D |x|·|y|, Higham 2002, section 3.1), its scores are computed again in float64.

    Args:
        weights: Finite weights, (C, D).
        bias: Bias, (C,), or None.
        settle: Decides rows (n, D) whose float64 scores are also closer than their rounding.
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
        """Return the class of each of the rows (n, D), (n,)."""
        if len(self._weights) <= FEW or not len(rows):
            return self._exactly(rows)
        return torch.cat([self._quickly(part) for part in rows.split(ROWS)])

    def _prepare(self) -> None:
        classes, features = self._weights.shape
        # Powers of two change no digit, and bring weights and biases of any magnitude near 1.
        self._size, self._bias_size = power_of_two(largest(self._weights), 0), 1.0
        extended = self._weights.new_zeros(classes, features + 1, dtype=torch.float32)
        extended[:, :features] = self._weights / self._size
        if self._bias is not None:
            self._bias_size = power_of_two(largest(self._bias), 0)
            extended[:, features] = self._bias / self._bias_size
        self._extended = extended
        self._longest = float(torch.linalg.vector_norm(extended[:, :features], dim=1).max())
        self._rounding = 1.01 * 2 * (features + 4) * torch.finfo(torch.float32).eps / 2

    def _quickly(self, rows: Tensor) -> Tensor:
        scaled, uncertain = self._scaled(rows)
        best, second = (scaled.new_full((len(rows),), -torch.inf) for _ in range(2))
        classes = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        buffer = scaled.new_empty(len(rows), min(COLUMNS, -(-len(self._extended) // GROUP) * GROUP))
        for start in range(0, len(self._extended), COLUMNS):
            part = self._extended[start : start + COLUMNS]
            width = -(-len(part) // GROUP) * GROUP
            scores = buffer[:, :width]
            scores[:, len(part) :] = -torch.inf
            torch.mm(scaled, part.T, out=scores[:, : len(part)])
            first, index, next_highest = _two_highest(scores)
            second = torch.maximum(torch.maximum(second, next_highest), torch.minimum(best, first))
            classes = torch.where(first > best, index + start, classes)
            best = torch.maximum(best, first)
        again = ~(best - second > uncertain)
        if bool(again.any()):
            classes[again] = self._exactly(rows[again])
        return classes

    def _scaled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return float32 unit rows with the factor of the bias as last column, and the rounding of their scores."""
        if rows.dtype != torch.float64:
            rows = rows.to(torch.float32)
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        scaled = rows.new_empty(len(rows), rows.shape[1] + 1, dtype=torch.float32)
        torch.div(rows, lengths, out=scaled[:, :-1])
        factor = self._bias_size / (lengths.double() * self._size) if self._bias is not None else lengths * 0
        scaled[:, -1:] = factor
        uncertain = self._rounding * (self._longest + scaled[:, -1])
        # Squares of other lengths underflow or overflow.
        safe = ((lengths > SHORT) & (lengths < LONG)).squeeze(1)
        return scaled, torch.where(safe, uncertain, torch.inf)

    def _exactly(self, rows: Tensor) -> Tensor:
        at_once = max(64, EXACT_BYTES // (8 * max(self._weights.shape)))
        classes = []
        for part in rows.split(at_once):
            part = part.to(torch.float64)
            scores = part @ self._weights.T
            scores = scores if self._bias is None else scores.add_(self._bias)
            best = scores.argmax(dim=1)
            if self._settle is not None and scores.shape[1] > 1:
                close = self._close(scores, part)
                if len(close):
                    best[close] = self._settle(part[close])
            classes.append(best)
        return torch.cat(classes)

    def _close(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Return the positions of rows (n, D) whose two highest scores (n, C) are closer than their rounding."""
        highest, features = scores.topk(2, dim=1).values, rows.shape[1]
        longest, bias = row_lengths(self._weights).max(), 0.0 if self._bias is None else self._bias.abs().max()
        apart = highest[:, 0] - highest[:, 1]
        # No row is longer than all rows together; lengths of rows are computed only if this bound does not suffice.
        most = longest * torch.linalg.matrix_norm(rows) + bias
        close = (~(apart > 2 * (features + 2) * EPSILON * most)).nonzero().squeeze(1)
        if not len(close):
            return close
        return close[~(apart[close] > 2 * (features + 2) * EPSILON * (row_lengths(rows[close]) * longest + bias))]


class NearestMean:
    """Finds the nearest class mean of samples.

    Args:
        class_means: Class means, (C, D), with rows of NaN for absent classes.

    Attributes:
        present: Whether each class has a mean, (C,).
    """

    def __init__(self, class_means: Tensor) -> None:
        self.present = present = ~class_means.isnan().any(dim=1)
        self._numbers = present.nonzero().squeeze(1)
        # If all classes are present, a copy would double the memory.
        means = class_means if bool(present.all()) else class_means[present]
        self._unit = power_of_two(largest(means))
        self._means = means if self._unit == 1 else means / self._unit
        centre = self._means.mean(dim=0)
        away = self._means - centre
        # −‖z − μ‖² differs from 2 z·a − ‖a‖² − 2 c·a, with μ = c + a, by a term that is equal for all classes.
        sizes = away.square().sum(dim=1) + 2 * (away @ centre)
        self._decision = LinearDecision(away.mul_(2), -sizes, self._by_distance)

    def of(self, features: Tensor) -> Tensor:
        """Return the class of each of (n, D) features, (n,)."""
        rows = features if self._unit == 1 else features.to(torch.float64) / self._unit
        return self._numbers[self._decision.of(rows)]

    def _by_distance(self, rows: Tensor) -> Tensor:
        """Return the position of the mean nearest to each of (n, D) rows, (n,): slower, whatever the scales are."""
        unit = power_of_two(largest(rows))
        return torch.cdist(rows / unit, self._means / unit, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)


def nearest_means(features: Tensor, class_means: Tensor) -> Tensor:
    """Return the class of the nearest mean of each sample, (n,); NC4 is the share where it is not the predicted one.

    Args:
        features: Features, (n, D).
        class_means: Class means, (C, D), with rows of NaN for absent classes.
    """
    return NearestMean(class_means.to(torch.float64)).of(features)


def _two_highest(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the highest score of each row (n, k·GROUP), its index, and the second highest one, which may be equal."""
    rows = torch.arange(len(scores), device=scores.device)
    groups = scores.unflatten(1, (-1, GROUP))
    tops = groups.amax(dim=2)
    group = tops.argmax(dim=1)
    inside = groups[rows, group]
    best, index = inside.max(dim=1)
    # Without the highest score, the next one is the highest of its group or of all other groups.
    tops[rows, group] = inside[rows, index] = -torch.inf
    return best, group * GROUP + index, torch.maximum(tops.amax(dim=1), inside.amax(dim=1))
