"""Bias of metrics from the number of rows: values of two halves against that of all rows, checked by quarters.

A metric of N rows exceeds that of the population by about b/N. The mean over two halves then exceeds the value of all
rows by the same b/N, which estimates the bias (Quenouille 1956). If b/N describes the bias, the mean over four quarters
exceeds the value of all rows by three times as much.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.moments.errors.design import FEW_FOR_BIAS
from ckpt_probe.moments.errors.sample import needs_classes
from ckpt_probe.moments.registry import CENTRED, DOCUMENTS, LOGITS, SECOND_PASS, TRAIN_MEANS, Metric

if TYPE_CHECKING:
    from ckpt_probe.moments.inputs import Inputs

NO_HALVES = "rows were not accumulated by halves (`halves=True`)"
NO_HALF = "a half of the rows has no value"
NOT_ACCUMULATED = "needs further passes over each half"
OF_ABSOLUTE_VALUES = "it is a mean of absolute values, whose bias does not fall as 1/N"
TOO_SMALL = "the sample is too small for this number: its bias does not fall as 1/N"
UNCHECKED = (
    "the sample may be too small for this number: its bias is large, and too few rows were kept to check that it falls "
    "as 1/N"
)
MOST_PARTS = 8
"""Largest factor between all rows and the rows of a part that stands for a quarter."""

ENOUGH_ROWS = 512
"""Rows of such a part that suffice, where they are at least 1/8 of all rows: the joint matrix of few rows is small."""

MANY_ERRORS = 5
"""Standard errors that a bias must exceed to be stated if it cannot be checked by quarters."""

WITH_ERROR = frozenset({"nc1", "spectrum"})
"""Families whose standard errors include those of their biases: few rows decide a variance, in a half even fewer."""

LARGE_SHARE = 1 / 8
"""Share of the value above which a bias of these families is checked or stated although its standard error is large, as
that of NC1 is where class means nearly coincide: it is then proportional to N."""

LEFT, LEFT_OF_BIAS = 1.5, 0.5
"""Standard errors up to which bias may remain after the correction; with one part in place of four quarters, which is
noisier, also the share of the bias."""

Values = Mapping[str, Any]

Bias = tuple[float | None, str | None]
"""Bias and a reason: why it is missing, or why it cannot be relied on."""


ValuesOf = Callable[..., Values]
"""Computes the metrics of some names from inputs, with `gradient=True` as tensors with gradient."""


class Biases:
    """Computes biases of metrics, and influences of rows on value minus bias, from values of parts of the rows.

    Args:
        metrics: Metrics by their names in the record.
        values: Values of all rows by name, to which standard errors may be added later.
        inputs: Inputs of all rows, with a sample.
        values_of: Computes the metrics of some names from other inputs.
        influences: Influences (m,) of the rows of the sample by name.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        values: Values,
        inputs: "Inputs",
        values_of: ValuesOf,
        influences: Mapping[str, Tensor],
    ) -> None:
        assert inputs.sample is not None
        self._metrics, self._values, self._inputs, self._values_of = metrics, values, inputs, values_of
        self._influences, self._sample = influences, inputs.sample
        # Without halves there is no part, and a metric of no part has no value.
        parts = [] if self._sample.reason is not None or inputs.halves is None else inputs.halves()
        if inputs.centred_parts is not None:
            for part, entropies in zip(parts, inputs.centred_parts.halves, strict=False):
                part.centred = entropies
        self._halves = [self._of_part(part, metrics) for part in parts]

    def influences_of_corrected(self) -> dict[str, Tensor]:
        """Return the influences (m,) on value minus bias of those metrics whose bias has an error that counts.

        With the bias (f₁ + f₂)/2 − f of halves they are 2 IF − IF₁₂, IF₁₂ those on the mean over both halves. They
        count if the bias exceeds its standard error, or fewer than `FEW_FOR_BIAS` rows decide; as half of the rows
        determine IF₁₂, they contain what `Design.widening` adds for few rows.
        """
        design, chosen = self._sample.design, []
        for name, influences in self._influences.items():
            mean = _mean_of(name, self._halves) if self._metrics[name].family in WITH_ERROR else None
            error = None if mean is None else design.stderr(influences)
            if mean is not None and error is not None:
                few = design.documents is None and design.effective(influences) < FEW_FOR_BIAS
                chosen += [name] if few or abs(mean - float(self._values[name])) > error else []
        if not chosen or self._inputs.halves_along is None:
            return {}
        parts = [self._values_of(part, chosen, gradient=True) for part in self._inputs.halves_along()]
        results = {}
        for name in chosen:
            values_of_parts = [part[name] for part in parts if name in part]
            tensors = [value for value in values_of_parts if isinstance(value, Tensor) and value.requires_grad]
            if len(tensors) == len(parts):
                total = torch.stack(tensors).sum()
                (gradient,) = torch.autograd.grad(total, self._sample.weights, retain_graph=True)
                corrected = 2 * self._influences[name] - design.samples / len(parts) * gradient.cpu()
                results |= {name: corrected} if bool(corrected.isfinite().all()) else {}
        return results

    def of_metrics(self) -> dict[str, Bias]:
        """Return the bias of each metric."""
        biases = {name: self._bias(name, metric) for name, metric in self._metrics.items()}
        suspects = {}
        for name, (bias, _) in biases.items():
            error = self._values.get(f"{name}_stderr")
            if bias is not None and error is not None and (abs(bias) > error or self._is_large(name, bias)):
                suspects[name] = (bias, error)
        biases |= self._checked(suspects) if suspects else {}
        for name, (bias, reason) in list(biases.items()):
            # Biases of the joint entropy and of the others can cancel, but not for every N.
            joint = re.sub(r"\.(mir|mutual_information)$", ".entropy_joint", name)
            if reason is None and joint != name and biases.get(joint, (None, None))[1] == TOO_SMALL:
                biases[name] = bias, TOO_SMALL
        return biases

    def _bias(self, name: str, metric: Metric) -> Bias:
        value, reason = self._values[name], self._sample.reason_of(metric)
        if value is None or reason is not None:
            return None, reason
        if self._inputs.halves is None:
            return None, NO_HALVES
        if SECOND_PASS in metric.requires:
            return self._of_nearest_means(name)
        if TRAIN_MEANS in metric.requires:
            # Means of other rows do not depend on the rows that are compared with them.
            same_means = self._inputs.nearest_train is self._inputs.nearest
            return self._of_nearest_means(name.removesuffix("_train_means")) if same_means else (0.0, None)
        if name == "ece":
            return None, OF_ABSOLUTE_VALUES
        if LOGITS in metric.requires:
            return 0.0, None
        mean = _mean_of(name, self._halves)
        return (None, NO_HALF) if mean is None else (mean - float(value), None)

    def _of_nearest_means(self, name: str) -> Bias:
        """Return the change of a share of rows if each row is compared with the class means of its own part."""
        nearest, of_parts = self._inputs.nearest_of_sample, self._inputs.nearest_of_parts
        if nearest is None or of_parts is None:
            return None, NO_HALF
        changes = self._sample.changes_of_rows(name, nearest, of_parts)
        return (None, NOT_ACCUMULATED) if changes is None else (float(self._sample.design.shares @ changes.cpu()), None)

    def _of_part(self, part: "Inputs", metrics: Mapping[str, Metric]) -> Values:
        """Return some metrics of a part of the rows, without those that it does not determine as it lacks a class."""
        if not part.samples:
            return {}
        names = [name for name, metric in metrics.items() if not (part.lacks_class and needs_classes(metric))]
        part.provided = set(self._inputs.provided) - {LOGITS, SECOND_PASS, TRAIN_MEANS, DOCUMENTS}
        part.provided -= {CENTRED} if part.centred is None else set()
        part.unavailable = dict(self._inputs.unavailable)
        part.outside_mean = self._inputs.outside_mean
        try:
            return self._values_of(part, frozenset(names))
        except DataError:
            return {}

    def _checked(self, suspects: Mapping[str, tuple[float, float]]) -> dict[str, Bias]:
        """Return biases that exceed their errors, with the reason if smaller parts of the rows do not agree."""
        inputs, sample, parts = self._inputs, self._sample, self._quarters()
        unchecked: dict[str, Bias] = {
            name: (bias, UNCHECKED)
            for name, (bias, error) in suspects.items()
            if abs(bias) > MANY_ERRORS * error or self._is_large(name, bias)
        }
        if not parts or not all(map(len, parts)):
            return unchecked
        assert inputs.of_rows is not None
        of_parts = []
        for chosen in parts:
            rows, labels = sample.features[chosen], sample.labels[chosen]
            part = inputs.of_rows(rows, labels)
            if inputs.centred_parts is not None:
                part.centred = inputs.centred_parts.of_rows(rows, labels)
            of_parts.append(self._of_part(part, {name: self._metrics[name] for name in suspects}))
        ratio = inputs.samples / (sum(len(chosen) for chosen in parts) / len(parts))
        checked: dict[str, Bias] = {}
        for name, (bias, error) in suspects.items():
            mean = _mean_of(name, of_parts)
            if mean is None:
                continue
            # Rows of a part that happen to be high or low do not count as bias.
            of_rows = self._influences[name] - sample.design.shares @ self._influences[name].nan_to_num()
            by_chance = sum(float(of_rows[chosen].nanmean()) for chosen in parts) / len(parts)
            excess = mean - float(self._values[name]) - by_chance
            most = LEFT * error if len(parts) > 1 else max(LEFT * error, LEFT_OF_BIAS * abs(bias))
            checked[name] = bias, TOO_SMALL if remaining_bias(bias, excess, ratio) > most else None
        return unchecked | checked

    def _is_large(self, name: str, bias: float) -> bool:
        """Return whether a bias is a large share of a value whose standard error includes that of the bias."""
        return self._metrics[name].family in WITH_ERROR and abs(bias) > LARGE_SHARE * abs(self._values[name])

    def _quarters(self) -> list[Tensor]:
        """Return positions in the sample of parts of all rows that check biases; empty if the sample is too small."""
        counts = self._inputs.scatter.counts.cpu()
        share = self._sample.share_of_part(counts)
        if share * MOST_PARTS < 1:
            return []
        return self._sample.parts(counts, min(share, max(1 / MOST_PARTS, ENOUGH_ROWS / self._inputs.samples)))


def _mean_of(name: str, parts: list[Values]) -> float | None:
    """Return the mean of a metric over parts of the rows; None if a part has no value, or there are no parts."""
    values = [float(part[name]) for part in parts if part.get(name) is not None]
    return sum(values) / len(values) if parts and len(values) == len(parts) else None


def remaining_bias(bias: float, excess: float, ratio: float) -> float:
    """Return the size of the bias of N rows that remains after the correction, if it is proportional to N^(−p).

    The excess of the halves is then b (2^p − 1) and that of parts b (ratio^p − 1), whose quotient determines p. For
    p = 1 nothing remains.

    Args:
        bias: Excess of the halves over the value of all rows.
        excess: Excess of smaller parts.
        ratio: Number of all rows over that of a part, more than 2.

    Returns:
        The size; infinity if the excesses do not fall.
    """
    quotient = excess / bias
    if quotient <= math.log2(ratio):
        return math.inf
    low, high = 0.0, 8.0
    for _ in range(60):
        p = (low + high) / 2
        low, high = (p, high) if (ratio**p - 1) < quotient * (2**p - 1) else (low, p)
    return abs(bias * (1 / (2**p - 1) - 1))
