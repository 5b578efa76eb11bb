"""What the metrics become at neural collapse, and the geometry that reaches it."""

import math

import torch
from torch import Tensor

from ckpt_probe.errors import DataError


def reference_values(classes: int) -> dict[str, float | None]:
    """Class-level entropy (nats), MIR and HDR at neural collapse with `classes` classes (arXiv 2409.16767, theorem 1).

    There class means and weights are aligned simplex equiangular tight frames, cos = −1/(C−1): H = log(C−1), HDR = 0,
    MIR = 1/(C−1) + (C−2) log(C−2) / ((C−1) log(C−1)). With two classes H = 0 and both ratios are undefined: None.
    Raises DataError for fewer than two classes.
    """
    if classes < 2:
        raise DataError(f"neural collapse needs at least two classes, found {classes}")
    if classes == 2:
        return {"reference.mir": None, "reference.hdr": None, "reference.entropy": 0.0}
    pairs = (classes - 2) * math.log(classes - 2) / ((classes - 1) * math.log(classes - 1))
    return {
        "reference.mir": 1 / (classes - 1) + pairs,
        "reference.hdr": 0.0,
        "reference.entropy": math.log(classes - 1),
    }


def simplex_etf(classes: int, features: int) -> Tensor:
    """Rows of a simplex equiangular tight frame: unit length, cosine −1/(C−1) between any two. (C, D) float64.

    Raises DataError where it does not exist: C < 2 or C > D + 1 (Papyan, Han and Donoho 2020).
    """
    if classes < 2 or classes > features + 1:
        raise DataError(f"a simplex of {classes} rows does not exist in {features} dimensions (2 ≤ C ≤ D + 1)")
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    _, vectors = torch.linalg.eigh(centred)
    rows = vectors[:, 1:] * math.sqrt(classes / (classes - 1))
    return torch.nn.functional.pad(rows, (0, features - (classes - 1)))
