"""Neural collapse NC1-NC4 (Papyan, Han and Donoho 2020) and CDNV (Galanti et al. 2021) from class means and scatter.

Below, M are centred class means (C, D): row m_c = μ_c − μ_G, μ_G the mean of the class means. All tensors float64.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ckpt_probe.metrics.gram import smaller_gram

BLOCK_ENTRIES = 2**23
"""Entries of a C × C matrix that are at hand at once, so that heads of 50,000 rows take no 20 GB."""


def nc1_pinv(within: Tensor, M: Tensor, *, magnitude: float = 0.0) -> float | None:
    """tr(Σ_W Σ_B⁺)/C: spread within classes against that between their means; 0 at collapse. None where M = 0.

    within: Σ_W (D, D), the within-class covariance over all samples; M: (C, D). magnitude: the largest entry of the
    means before they were centred, to which M's rounding is relative; directions below that count as absent.
    """
    classes, features = M.shape
    _, singular, directions = torch.linalg.svd(M / classes**0.5, full_matrices=False)
    # Centred rows sum to zero, so that they span at most C − 1 directions; the last one is rounding and nothing else.
    singular, directions = singular[: classes - 1], directions[: classes - 1]
    largest = max(float(singular.max()), magnitude)
    present = singular > max(classes, features) * torch.finfo(M.dtype).eps * largest
    if not bool(present.any()):
        return None
    along = directions[present]
    spread = ((along @ within) * along).sum(dim=1)
    return float((spread / singular[present] ** 2).sum() / classes)


def cdnv(variances: Tensor, means: Tensor) -> float | None:
    """Class-distance normalised variance: mean over pairs of (v_c + v_c') / (2 ‖μ_c − μ_c'‖²); 0 at collapse.

    variances: v_c = mean ‖z − μ_c‖², (C,); means: (C, D). None where two class means coincide.
    """
    classes = means.shape[0]
    total = 0.0
    for part, others in _row_blocks(classes):
        # Differences are taken before squaring: the usual expansion loses the digits of means that lie close together.
        distances = torch.cdist(means[part], means, compute_mode="donot_use_mm_for_euclid_dist").square()
        distances = distances[others]
        if not bool((distances > 0).all()):
            return None
        sums = (variances[part, None] + variances)[others]
        total += float((sums / (2 * distances)).sum())
    return total / (classes * (classes - 1))


def equinorm(rows: Tensor) -> float | None:
    """NC2: standard deviation over mean of the lengths of (C, D) rows; 0 at collapse. None where all are zero."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    mean = lengths.mean()
    return float(lengths.std(correction=0) / mean) if mean > 0 else None


def equiangular(rows: Tensor) -> float | None:
    """NC2: mean over pairs of |cos(row_c, row_c') + 1/(C−1)|; 0 at collapse. None where a row has zero length."""
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        return None
    unit, classes = rows / lengths, rows.shape[0]
    apart = 1 / (classes - 1)
    total = sum(float(((unit[part] @ unit.T)[others] + apart).abs().sum()) for part, others in _row_blocks(classes))
    return total / (classes * (classes - 1))


def etf_distance(M: Tensor) -> float | None:
    """NC2: ‖M Mᵀ/‖M Mᵀ‖_F − E/‖E‖_F‖_F, E the Gram matrix of the simplex ETF; 0 at collapse. None where M = 0."""
    classes = M.shape[0]
    # ‖M Mᵀ‖_F from the smaller of its two sides.
    size = torch.linalg.matrix_norm(smaller_gram(M))
    if not bool(size > 0):
        return None
    diagonal, length = 1 - 1 / classes, math.sqrt(classes - 1)
    squares = 0.0
    for part, others in _row_blocks(classes):
        difference = M[part] @ M.T / size
        difference[others] += 1 / classes / length
        difference[~others] -= diagonal / length
        squares += float(difference.square().sum())
    return math.sqrt(squares)


def duality(weights: Tensor, M: Tensor) -> float | None:
    """NC3: ‖W/‖W‖_F − M/‖M‖_F‖_F for W and M of (C, D); 0 at collapse. None where either is zero."""
    sizes = torch.linalg.matrix_norm(weights), torch.linalg.matrix_norm(M)
    if not bool(torch.stack(sizes).min() > 0):
        return None
    return float(torch.linalg.matrix_norm(weights / sizes[0] - M / sizes[1]))


def nearest_means(features: Tensor, class_means: Tensor) -> Tensor:
    """The class whose mean is nearest to each sample, (n,): NC4 counts where it is not the predicted one.

    features: (n, D); class_means: (C, D), NaN rows for absent classes.
    """
    # ‖z − μ‖² differs from −2 z·μ + ‖μ‖² by a term that is the same for every class.
    present = ~class_means.isnan().any(dim=1)
    numbers = present.nonzero().squeeze(1)
    means = class_means[present]
    centre = means.mean(dim=0)
    means = means - centre
    scores = means.square().sum(dim=1) - 2 * (features.to(means.dtype) - centre) @ means.T
    return numbers[scores.argmin(dim=1)]


def _row_blocks(classes: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a C × C matrix, some at a time, and which of their entries are off its diagonal."""
    rows = max(1, BLOCK_ENTRIES // classes)
    for start in range(0, classes, rows):
        part = slice(start, min(start + rows, classes))
        others = torch.ones(part.stop - start, classes, dtype=torch.bool)
        others[torch.arange(part.stop - start), torch.arange(start, part.stop)] = False
        yield part, others
