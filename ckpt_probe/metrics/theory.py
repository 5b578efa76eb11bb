"""What the metrics become at neural collapse, and the geometry that reaches it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.entropy import entropy_of_spectrum, spectrum


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
    """What gnc2.uniformity is where class means are spread as evenly as can be said in closed form.

    That is the simplex ETF, −½ log(2C/(C−1)), while it exists (C ≤ D + 1); beyond it the expectation over directions
    that are uniform on the sphere, −log 2 + ½ (ψ(D−1) − ψ((D−1)/2)), which even spreading falls below. None for more
    than two classes in one dimension.
    """
    if simplex_exists(classes, features):
        return -math.log(2 * classes / (classes - 1)) / 2
    if features == 1:
        return None
    # The squared distance of two such directions is four times a Beta((D−1)/2, (D−1)/2) variable.
    half = torch.tensor((features - 1) / 2, dtype=torch.float64)
    return -math.log(2) + float(torch.digamma(2 * half) - torch.digamma(half)) / 2


ZERO_AT_COLLAPSE = (
    "class.hdr",
    "sample.hdr",
    "within.entropy_mean",
    "within.entropy_max",
    "nc1.pinv",
    "nc1.cdnv",
    "nc2.equinorm_means",
    "nc2.equinorm_weights",
    "nc2.equiangular_means",
    "nc2.equiangular_weights",
    "nc2.etf",
    "gnc2.spread",
    "nc3.duality",
    "nc3.uniformity",
    "nc4.disagreement",
)


def collapse_values(counts: Sequence[int]) -> dict[str, float | None]:
    """Every metric that has a value at neural collapse, for classes of `counts` samples each, equal or not.

    Features are then their class's mean, and means and weights aligned simplex ETFs around the origin. Class level as
    `reference_values`; at sample level, with p_c the share of class c and E the ETF's Gram matrix, the entropies (nats)
    are those of diag(√p) E diag(√p) and diag(√p) (E ⊙ E) diag(√p): equal shares give the class level's values. With two
    classes the ratios at class level are None. Raises DataError for fewer than two classes or one without a sample.
    """
    classes = len(counts)
    reference = reference_values(classes)
    if min(counts) < 1:
        raise DataError("the values at neural collapse need every class to have at least one sample; a count is 0")
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    E = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64).fill_diagonal_(1)
    roots = shares.sqrt().outer(shares.sqrt())
    single, joint = (float(entropy_of_spectrum(spectrum(roots * matrix))) for matrix in (E, E * E))
    entropy, ratio = reference["reference.entropy"], reference["reference.mir"]
    means = {"class.entropy_means": entropy, "class.entropy_weights": entropy, "class.mir": ratio}
    means["gnc2.uniformity"] = -math.log(2 * classes / (classes - 1)) / 2
    means["class.mutual_information"] = 0.0 if ratio is None or entropy is None else ratio * entropy
    samples: dict[str, float | None] = dict.fromkeys(("sample.entropy_features", "sample.entropy_weights"), single)
    samples |= {"sample.entropy_joint": joint, "sample.mutual_information": 2 * single - joint}
    samples |= {"sample.effective_rank": math.exp(single)}
    samples["sample.mir"] = (2 * single - joint) / single if single > 0 else None
    zeros: dict[str, float | None] = dict.fromkeys(ZERO_AT_COLLAPSE, 0.0)
    if classes == 2:
        zeros |= {"class.hdr": None, "sample.hdr": None}
    return {**means, **samples, **zeros}


def simplex_etf(classes: int, features: int) -> Tensor:
    """Rows of a simplex equiangular tight frame: unit length, cosine −1/(C−1) between any two. (C, D) float64.

    Raises DataError where it does not exist: C < 2 or C > D + 1 (Papyan, Han and Donoho 2020).
    """
    if classes < 2 or not simplex_exists(classes, features):
        raise DataError(f"a simplex of {classes} vertices does not exist in {features} dimensions (2 ≤ C ≤ D + 1)")
    centred = torch.eye(classes, dtype=torch.float64) - 1 / classes
    _, vectors = torch.linalg.eigh(centred)
    rows = vectors[:, 1:] * math.sqrt(classes / (classes - 1))
    return torch.nn.functional.pad(rows, (0, features - (classes - 1)))
