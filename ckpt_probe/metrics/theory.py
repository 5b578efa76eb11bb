"""Values of metrics at neural collapse, and the simplex equiangular tight frame."""

import math

import torch
from torch import Tensor

from ckpt_probe.errors import DataError


def reference_values(classes: int, features: int | None = None) -> dict[str, float | None]:
    """Compute class-level entropy (nats), MIR and HDR at neural collapse (arXiv 2409.16767, theorem 1).

    Class means and weights are then aligned simplex equiangular tight frames, cos = −1/(C−1): H = log(C−1), HDR = 0,
    MIR = 1/(C−1) + (C−2) log(C−2) / ((C−1) log(C−1)). With two classes H = 0 and both ratios are undefined. Without a
    simplex (C > D + 1) H and MIR depend on how the classes are arranged, and only HDR = 0 follows from the alignment.

    Args:
        classes: Their number C.
        features: Their dimension D; None where it is large enough for a simplex.

    Returns:
        Values by their names in a record; None for a value that does not exist.

    Raises:
        DataError: If there are fewer than two classes.
    """
    if classes < 2:
        raise DataError(f"neural collapse needs at least two classes, found {classes}")
    if not simplex_exists(classes, features):
        # In one dimension all directions are alike but for their sign, so that entropies are zero.
        return {"reference.mir": None, "reference.hdr": None if features == 1 else 0.0, "reference.entropy": None}
    if classes == 2:
        return {"reference.mir": None, "reference.hdr": None, "reference.entropy": 0.0}
    pairs = (classes - 2) * math.log(classes - 2) / ((classes - 1) * math.log(classes - 1))
    return {
        "reference.mir": 1 / (classes - 1) + pairs,
        "reference.hdr": 0.0,
        "reference.entropy": math.log(classes - 1),
    }


def simplex_exists(classes: int, features: int | None) -> bool:
    """Return whether `classes` directions of as many dimensions as `features` can form a simplex: C ≤ D + 1."""
    return features is None or classes <= features + 1


def without_simplex(classes: int, features: int) -> str:
    """Return the reason for a value at collapse that is missing where no simplex exists, with the bound that holds."""
    bound = f"class entropies are at most log D = {math.log(features):.4g}"
    return f"no simplex of {classes} classes exists in {features}-dimensional space (C > D + 1); {bound}"


def uniformity_reference(classes: int, features: int) -> float | None:
    """Return the value of gnc2.uniformity for evenly spread class means, as far as there is a closed form.

    For C ≤ D + 1 this is the value of the simplex ETF, −½ log(2C/(C−1)). Otherwise it is the expectation over
    directions that are uniform on the sphere, −log 2 + ½ (ψ(D−1) − ψ((D−1)/2)); evenly spread means have a lower value.
    None for more than two classes in one dimension.
    """
    if simplex_exists(classes, features):
        return -math.log(2 * classes / (classes - 1)) / 2
    if features == 1:
        return None
    # The squared distance of two such directions is four times a Beta((D−1)/2, (D−1)/2) variable.
    half = torch.tensor((features - 1) / 2, dtype=torch.float64)
    return -math.log(2) + float(torch.digamma(2 * half) - torch.digamma(half)) / 2


def simplex_etf(classes: int, features: int) -> Tensor:
    """Return the rows of a simplex equiangular tight frame: unit length, cosine −1/(C−1) between any two.

    Papyan, Han and Donoho 2020.

    Args:
        classes: Number of rows C.
        features: Number of columns D.

    Returns:
        Rows (C, D), float64.

    Raises:
        DataError: If the frame does not exist, for C < 2 or C > D + 1.
    """
    if classes < 2 or not simplex_exists(classes, features):
        raise DataError(f"a simplex of {classes} vertices does not exist in {features} dimensions (2 ≤ C ≤ D + 1)")
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    _, vectors = torch.linalg.eigh(centred)
    rows = vectors[:, 1:] * math.sqrt(classes / (classes - 1))
    return torch.nn.functional.pad(rows, (0, features - (classes - 1)))
