"""Standard errors of the numbers of each class, from the influences of the rows of this class.

A number of a class depends on the rows of this class alone. The sum of a number over all classes therefore has, along
the weight of a row, the derivative of the number of the row's own class: one backward pass returns the influences on
the numbers of all classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ckpt_probe.moments.errors import FEW_DOCUMENTS, FEW_ROWS, FEWEST_ROWS, FIXED, NOT_FINITE, Sample

NEAREST_OWN = "nearest.own"
FEW_OF_CLASS = f"fewer than {FEWEST_ROWS} rows of the class were kept for standard errors"
NO_VALUE = "the class has no value"

Columns = Mapping[str, tuple[Tensor, Tensor]]
"""Labels (k,) and values (k,) of classes, by name of the number."""


def errors_of_classes(sample: Sample, counts: Tensor, columns: Columns) -> dict[int, dict[str, float | str | None]]:
    """Return the standard errors of the numbers of each class, and the reasons for missing ones in `missing`, by label.

    Args:
        sample: Rows along whose weights the values have gradients.
        counts: Numbers of all rows by class, (C,).
        columns: The numbers, whose values have gradients along the weights of the sample.
    """
    rows: dict[int, dict[str, float | str | None]] = {}
    influences = {name: _influences(sample, values) for name, (_, values) in columns.items()}
    numbers = {
        name: dict(zip(labels.tolist(), values.tolist(), strict=True)) for name, (labels, values) in columns.items()
    }
    for label in counts.nonzero().squeeze(1).tolist():
        mask = sample.design.labels == label
        in_general, reasons = _reason_of_class(sample, mask, int(counts[label])), dict[str, list[str]]()
        rows[label] = {}
        for name, of_rows in influences.items():
            error, reason = None, in_general
            if label not in numbers[name]:
                reason = NO_VALUE
            elif reason is None and of_rows is None:
                reason = FIXED
            elif reason is None and of_rows is not None:
                of_class = torch.where(mask, of_rows, 0.0)
                reason = None if bool(of_class.isfinite().all()) else NOT_FINITE
                if reason is None:
                    error, reason = sample.stderr(numbers[name][label], of_class)
            rows[label][f"{name}_stderr"] = error
            if reason is not None:
                reasons.setdefault(reason, []).append(f"{name}_stderr")
        message = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        rows[label] |= {"missing": message} if message else {}
    return rows


def shares_of_classes(sample: Sample, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels of classes (k,) and the share of their rows in the sample that a mask (m,) selects, (k,)."""
    design = sample.design
    labels, each = torch.unique(design.labels, return_inverse=True)
    empty, values, weights = torch.zeros(len(labels), dtype=torch.float64), correct.double().cpu(), sample.weights.cpu()
    sizes = empty.index_add(0, each, design.shares)
    shares = empty.index_add(0, each, design.shares * values) / sizes
    changes = weights * (values - shares[each]) / (sizes[each] * design.samples)
    return labels, shares.index_add(0, each, changes)


def _influences(sample: Sample, values: Tensor) -> Tensor | None:
    """Return the influences (m,) of the rows on the number of their own class; None without a gradient."""
    if sample.reason is not None or not values.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(values.sum(), sample.weights, retain_graph=True, allow_unused=True)
    return None if gradient is None else sample.design.samples * gradient.cpu()


def _reason_of_class(sample: Sample, mask: Tensor, count: int) -> str | None:
    """Return the reason why the numbers of a class have no standard error, or None."""
    if sample.reason is not None:
        return sample.reason
    if count < FEWEST_ROWS:
        return FEW_ROWS
    if int(mask.sum()) < FEWEST_ROWS:
        return FEW_OF_CLASS
    documents = sample.design.documents
    few = documents is not None and len(documents[mask].unique()) < FEWEST_ROWS
    return FEW_DOCUMENTS if few else None
