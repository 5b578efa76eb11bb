"""Neural collapse NC1 to NC5 and CDNV from class means and scatter, and the values of metrics at collapse.

Papyan, Han and Donoho 2020; Ammar et al. 2024.

M are centred class means (C, D): row m_c = μ_c − μ_G, with μ_G the mean of the class means. All tensors are float64.
With many classes no C × C matrix is stored.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics import pairs
from ckpt_probe.metrics.rows import (
    EPSILON,
    Array,
    as_tensor,
    near_one,
    row_lengths,
    smaller_gram,
    to_rows,
    unit_or_zero,
    without_rounding,
)

MANY_ENTRIES = 2**21
"""Entries of (C, D) from which computations avoid another matrix of that size, and C × C matrices."""


def trace_along(axes: Tensor, within: Tensor, M: Tensor) -> float | Tensor:
    """Return tr(Σ_W Σ_B⁺)/C for the axes (r, D) of Σ_B⁺ that `between_axes` computes from M (C, D), with gradient."""
    return _number(_TraceOfPseudoInverse.apply(axes, within, M))


class _TraceOfPseudoInverse(torch.autograd.Function):
    """tr(W B⁺)/C with B = MᵀM/C, whose derivative needs no derivative of singular vectors.

    At constant rank dB⁺ = −B⁺ dB B⁺ + B⁺B⁺ dB (1 − BB⁺) + (1 − BB⁺) dB B⁺B⁺ (Golub and Pereyra 1973).
    """

    @staticmethod
    def forward(ctx: Any, axes: Tensor, within: Tensor, M: Tensor) -> Tensor:
        ctx.save_for_backward(axes, within, M)
        return ((axes @ within) * axes).sum() / len(M)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        axes, within, M = ctx.saved_tensors
        inner, unit = axes @ within, axes / torch.linalg.vector_norm(axes, dim=1, keepdim=True)
        outside = inner - (inner @ unit.T) @ unit
        change = (axes @ axes.T) @ outside - (inner @ axes.T) @ axes
        of_means = 2 / len(M) ** 2 * (M @ axes.T) @ change
        return None, gradients[0] / len(M) * (axes.T @ axes), gradients[0] * of_means


def between_axes(M: Tensor, size: float = 0.0) -> Tensor | None:
    """Return rows a_j (r, D) such that Σ_B⁺ = Σ a_j a_jᵀ, None where M (C, D) is zero.

    Args:
        M: (C, D).
        size: Rounding of the rows of M, a root mean square of lengths. Directions along which the means are no farther
            apart than that, or than the rounding of the farthest, count as absent.
    """
    classes, features = M.shape
    M = M.detach()
    singular, directions = _right_singular(M / classes**0.5)
    # Centred rows sum to zero, so that they span at most C − 1 directions; the last one is rounding and nothing else.
    singular, directions = singular[: classes - 1], directions[: classes - 1]
    present = singular > max(size, max(classes, features) * EPSILON * float(singular.max()))
    return directions[present] / singular[present, None] if bool(present.any()) else None


def quotient(variances: Tensor, counts: Tensor, M: Tensor) -> Tensor | None:
    """Return tr Σ_W / tr Σ_B, the quotient form of NC1 (Tirer et al. 2023); 0 at collapse. None where M = 0.

    Args:
        variances: v_c = mean ‖z − μ_c‖² of every class that has samples, (c,).
        counts: Numbers of their samples, (c,).
        M: (C, D).
    """
    between = M.square().sum(dim=1).mean()
    within = (variances * (counts / counts.sum())).sum()
    return within / between if bool(between.detach() > 0) else None


def separation(nc1: float | Tensor | None, M: Tensor) -> float | Tensor | None:
    """Return log tr(Σ_W Σ_B⁺), the separation fuzziness of He and Su (PNAS 2023), from nc1 and M (C, D).

    In a trained network it falls about linearly with depth. None if classes have no spread, or equal means.
    """
    if nc1 is None or not nc1 > 0:
        return None
    return (len(M) * nc1).log() if isinstance(nc1, Tensor) else math.log(len(M) * nc1)


def cdnv(variances: Tensor, means: Tensor, *, dist_exp: float = 1.0) -> float | Tensor | None:
    """Return the class-distance normalised variance, 0 at collapse (Galanti et al. 2021).

    It is the mean over pairs of (v_c + v_c') / (2 ‖μ_c − μ_c'‖²).

    Args:
        variances: v_c = mean ‖z − μ_c‖², (C,).
        means: Class means μ_c, (C, D).
        dist_exp: Power of the squared distance; 2 divides by ‖μ_c − μ_c'‖⁴, as Wu and Papyan 2024 do in places.

    Returns:
        The mean, or None if two class means coincide.
    """
    M = means - means.mean(dim=0)
    sizes = len(means) * EPSILON * row_lengths(means)
    quantity = pairs.Cdnv(variances, means, row_lengths(M), sizes, exponent=dist_exp)
    pairs.visit(unit_or_zero(M), [quantity])
    return quantity.value


def equinorm(rows: Tensor) -> float | Tensor | None:
    """Return NC2: standard deviation over mean of the lengths of rows (C, D), 0 at collapse; None if all are zero."""
    lengths = row_lengths(near_one(rows))
    mean = lengths.mean()
    return _number(lengths.std(correction=0) / mean) if mean > 0 else None


def lognorm_variance(rows: Tensor) -> Tensor | None:
    """Return NC2: variance (over C − 1) of the logarithms of the lengths of rows (C, D), 0 at collapse.

    Wu and Papyan 2024. None if a row has zero length.
    """
    lengths = row_lengths(near_one(rows))
    return lengths.log().var() if bool((lengths.detach() > 0).all()) else None


def equiangular(rows: Tensor) -> float | Tensor | None:
    """Return NC2: mean over pairs of |cos(row_c, row_c') + 1/(C−1)|, 0 at collapse; None if a row has zero length."""
    unit = unit_or_zero(rows)
    quantity = pairs.Equiangular(unit)
    pairs.visit(unit, [quantity])
    return quantity.value


def etf_distance(M: Tensor) -> float | Tensor | None:
    """Return NC2: ‖M Mᵀ/‖M Mᵀ‖_F − E/‖E‖_F‖_F, E the Gram matrix of the simplex ETF, 0 at collapse; None if M = 0."""
    classes, M = len(M), near_one(M)
    # ‖M Mᵀ‖_F from the smaller of its two sides.
    gram = smaller_gram(M)
    size = torch.linalg.matrix_norm(gram)
    if not bool(size > 0):
        return None
    length = math.sqrt(classes - 1)
    if classes**2 > MANY_ENTRIES:
        # Both matrices are zero on the vector of ones, and E is the identity elsewhere: eigenvalues determine the norm.
        values = torch.linalg.eigvalsh(gram)[-(classes - 1) :] / size
        absent = classes - 1 - len(values)
        return _number(((values - 1 / length).square().sum() + absent / length**2).sqrt())
    difference = M @ M.T / size
    others = ~torch.eye(classes, dtype=torch.bool, device=M.device)
    difference[others] += 1 / classes / length
    difference[~others] -= (1 - 1 / classes) / length
    return _number(difference.square().sum().sqrt())


def duality(weights: Tensor, M: Tensor) -> float | Tensor | None:
    """Return NC3: ‖W/‖W‖_F − M/‖M‖_F‖_F for W and M (C, D), 0 at collapse; None if one of them is zero."""
    weights, M = near_one(weights), near_one(M)
    sizes = torch.linalg.matrix_norm(weights), torch.linalg.matrix_norm(M)
    if not bool(torch.stack(sizes).min() > 0):
        return None
    parts = [torch.linalg.matrix_norm(weights[rows] / sizes[0] - M[rows] / sizes[1]) for rows in _parts(M)]
    return _number(torch.linalg.vector_norm(torch.stack(parts)))


def simplex_duality(weights: Tensor, M: Tensor) -> Tensor | None:
    """Return NC3 as ‖W Mᵀ/‖W Mᵀ‖_F − (I − 11ᵀ/C)/√(C−1)‖_F for W and M (C, D), 0 at collapse; None where W Mᵀ = 0.

    Zhu et al. 2021. With many classes the norm is computed from the cosine of both matrices, which leaves an absolute
    error of about 1e-8 near zero.
    """
    classes, weights, M = len(M), near_one(weights), near_one(M)
    least = M.shape[1] * EPSILON * float(torch.linalg.matrix_norm(weights) * torch.linalg.matrix_norm(M.detach()))
    if classes**2 <= MANY_ENTRIES:
        product = weights @ M.T
        size = torch.linalg.matrix_norm(product)
        simplex = torch.eye(classes, dtype=M.dtype, device=M.device) - 1 / classes
        return torch.linalg.matrix_norm(product / size - simplex / math.sqrt(classes - 1)) if size > least else None
    size = ((weights.T @ weights) * (M.T @ M)).sum().sqrt()
    along = torch.tensordot(weights, M, dims=2) - weights.sum(dim=0) @ M.sum(dim=0) / classes
    return (2 - 2 * along / (size * math.sqrt(classes - 1))).clamp(min=0).sqrt() if size > least else None


def duality_uniformity(weights: Tensor, M: Tensor) -> float | Tensor | None:
    """Return the standard deviation over classes of cos(w_c, m_c) for W and M (C, D), 0 at collapse.

    Wu and Papyan 2024. None if a row of W or M has zero length.
    """
    cosines = []
    for rows in _parts(M):
        first, second = unit_or_zero(weights[rows]), unit_or_zero(M[rows])
        if not bool((first.any(dim=1) & second.any(dim=1)).all()):
            return None
        cosines.append((first * second).sum(dim=1))
    return _number(torch.cat(cosines).std(correction=0))


def nc5(class_means: Array, outside_mean: Array, *, centred: bool = False, samples: int = 4096) -> float | Tensor:
    """Return NC5: mean over classes of |cos(μ_c, μ_out)|; 0 where data of other classes lie orthogonal to the means.

    Args:
        class_means: Means of the classes that were trained on, (C, D).
        outside_mean: Mean feature of data of classes that were not, (D,) (Ammar et al. 2024, arXiv 2310.06823).
        centred: Whether to subtract the mean of the class means μ_G from all means first, which is not the published
            definition.
        samples: Rows behind the means, to which their rounding is proportional.

    Raises:
        DataError: If shapes do not fit, values are not finite, or a mean is zero (if `centred`: is μ_G), so that a
            cosine is undefined.
    """
    means = to_rows(class_means, "class means")
    outside = to_rows(as_tensor(outside_mean, "outside mean")[None], "outside mean")
    if outside.shape[1] != means.shape[1]:
        raise DataError(f"nc5: class means have {means.shape[1]} features and the outside mean {outside.shape[1]}")
    both = near_one(torch.cat([means, outside]))
    lengths = row_lengths(both)
    size = max(samples, len(means)) * EPSILON * float(lengths.detach().max())
    away = unit_or_zero(without_rounding(both - both[:-1].mean(dim=0) if centred else both, size))
    if not bool(away.any(dim=1).all()):
        reason = "equals the mean of the class means" if centred else "is zero"
        raise DataError(f"nc5: undefined, because a class mean or the outside mean {reason}")
    return _number((away[:-1] @ away[-1]).abs().mean())


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


def _number(value: Tensor) -> float | Tensor:
    """Return a value (0-d) as a float, or unchanged if it has a gradient."""
    return value if value.requires_grad else float(value)


def _right_singular(M: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values of M (C, D), and its right singular vectors as rows."""
    if M.numel() > MANY_ENTRIES and M.shape[0] > M.shape[1]:
        # The left singular vectors, as large as M, are not needed.
        _, M = torch.linalg.qr(M, mode="r")
    _, singular, directions = torch.linalg.svd(M, full_matrices=False)
    return singular, directions


def _parts(rows: Tensor) -> Iterator[slice]:
    """Yield slices of rows (C, D) whose copies need little memory."""
    at_once = max(1, MANY_ENTRIES // rows.shape[1])
    for start in range(0, len(rows), at_once):
        yield slice(start, start + at_once)
