"""Neural collapse NC1-NC4 (Papyan, Han and Donoho 2020) and CDNV (Galanti et al. 2021) from class means and scatter.

Below, M are centred class means (C, D): row m_c = μ_c − μ_G, μ_G the mean of the class means. All tensors float64.
"""

import torch
from torch import Tensor


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
    first, second = _pairs(means.shape[0], means.device)
    # Differences are taken before squaring: the usual expansion loses the digits of means that lie close together.
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist")[first, second].square()
    if not bool((distances > 0).all()):
        return None
    return float(((variances[first] + variances[second]) / (2 * distances)).mean())


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
    unit = rows / lengths
    first, second = _pairs(rows.shape[0], rows.device)
    return float(((unit @ unit.T)[first, second] + 1 / (rows.shape[0] - 1)).abs().mean())


def etf_distance(M: Tensor) -> float | None:
    """NC2: ‖M Mᵀ/‖M Mᵀ‖_F − E/‖E‖_F‖_F, E the Gram matrix of the simplex ETF; 0 at collapse. None where M = 0."""
    classes = M.shape[0]
    product = M @ M.T
    size = torch.linalg.matrix_norm(product)
    if not bool(size > 0):
        return None
    simplex = torch.eye(classes, dtype=M.dtype, device=M.device) - 1 / classes
    return float(torch.linalg.matrix_norm(product / size - simplex / torch.linalg.matrix_norm(simplex)))


def duality(weights: Tensor, M: Tensor) -> float | None:
    """NC3: ‖W/‖W‖_F − M/‖M‖_F‖_F for W and M of (C, D); 0 at collapse. None where either is zero."""
    sizes = torch.linalg.matrix_norm(weights), torch.linalg.matrix_norm(M)
    if not bool(torch.stack(sizes).min() > 0):
        return None
    return float(torch.linalg.matrix_norm(weights / sizes[0] - M / sizes[1]))


def disagreements(features: Tensor, predictions: Tensor, class_means: Tensor) -> int:
    """NC4's count: samples whose predicted class is not that of the nearest class mean.

    features: (n, D); predictions: (n,) argmax of the logits; class_means: (C, D), NaN rows for absent classes.
    """
    # ‖z − μ‖² differs from −2 z·μ + ‖μ‖² by a term that is the same for every class.
    present = ~class_means.isnan().any(dim=1)
    numbers = present.nonzero().squeeze(1)
    means = class_means[present]
    centre = means.mean(dim=0)
    scores = means.sub(centre).square().sum(dim=1) - 2 * (features.to(means.dtype) - centre) @ (means - centre).T
    nearest = numbers[scores.argmin(dim=1)]
    return int((nearest != predictions).sum())


def _pairs(classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(classes, classes, offset=1, device=device)
    return first, second
