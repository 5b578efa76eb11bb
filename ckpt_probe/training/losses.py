"""Compute losses of matrix information for any training loop: minimise task_loss + λ · loss.

Spectra are computed in float64 for any dtype of the features (on the CPU for features on MPS, which lacks float64),
from the smaller side of each Gram matrix. Loss and gradient are on the features' device, the gradient in their dtype.
Eigenvalues at the level of rounding count as zero and have no gradient. This is exact: a Gram matrix is R Rᵀ, and the
entropy's gradient with respect to R, −(2/n) (log(K/n) + I) R, vanishes where R does. So it is finite for repeated rows
and batches of low rank. `matrix_entropy` is that of the metrics, which has the same gradient.
"""

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics import matrix_entropy
from ckpt_probe.metrics.entropy import Entropies, entropy_of_gram, entropy_of_spectrum, joint_gram
from ckpt_probe.metrics.rows import (
    as_labels,
    directions,
    has_gradient,
    smaller_gram,
    spectrum_of_repeated,
    to_rows,
    where_float64_is,
    without_small,
)
from ckpt_probe.moments.entropies.within import of_stack, stacks

__all__ = ["cma", "hdr_loss", "matrix_entropy", "mir_loss"]


def cma(features: Tensor, labels: Tensor, other_features: Tensor, other_labels: Tensor) -> Tensor:
    """Compute the class-wise alignment of two sources: the mean over classes of H(gram(F_c)) / log n_c.

    F_c are the n_c rows of class c from both sources (matrix entropy: arXiv 2409.16767, definition 1). The mean is over
    every label in either source. A class with fewer than two nonzero rows counts as 0 and has no gradient.

    Args:
        features: Rows of the first source, shape (n, D).
        labels: Their labels, any integers, shape (n,).
        other_features: Rows of the second source, shape (m, D), such as text features or class anchors.
        other_labels: Their labels, shape (m,).

    Returns:
        A scalar between 0 (each class has one direction) and 1.

    Raises:
        DataError: If a value is not finite, or shapes do not fit.
    """
    first, labels, mask = _labelled(features, labels, "")
    second, other_labels, other_mask = _labelled(other_features, other_labels, "other_")
    if first.shape[1] != second.shape[1]:
        raise DataError(f"features have {first.shape[1]} columns and other_features {second.shape[1]}")
    mask, both = torch.cat([mask, other_mask]), torch.cat([labels, other_labels])
    unit, _ = directions(torch.cat([first, second])[mask])
    total = _zero(features, other_features)
    for stack in stacks(unit, both[mask]):
        # Classes of one row are in a separate stack; both their entropy and log n are 0.
        if stack.rows.shape[1] > 1:
            entropies = entropy_of_spectrum(without_small(of_stack(stack)))
            total = total + (entropies / stack.sizes.double().log()).sum()
    return _to_features(total / len(both.unique()), features)


def mir_loss(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Compute −MIR of a batch, so that minimising it raises the matrix mutual information ratio.

    MIR of the Gram matrices of the features and of the weight rows of their labels (arXiv 2406.03999; definition 3 of
    arXiv 2409.16767). Samples whose feature or weight row is zero are left out. If MIR is undefined because an entropy
    is zero (one class, one sample, one direction), the loss and its gradient are 0.

    Args:
        features: Features, shape (n, D); they get a gradient.
        labels: Class indices, 0 … C−1, shape (n,).
        weights: Weights of the classifier, shape (C, D); they get a gradient.

    Returns:
        A scalar ≤ 0.

    Raises:
        DataError: If a value is not finite, a label is outside the weight rows, or shapes do not fit.
    """
    entropies = _of_batch(features, labels, weights)
    ratio = entropies and entropies.mir
    return _to_features(_zero(features, weights) if ratio is None else -ratio, features)


def hdr_loss(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Compute HDR of a batch, so that minimising it brings both entropies together.

    HDR of the Gram matrices of the features and of the weight rows of their labels (arXiv 2406.03999; definition 4 of
    arXiv 2409.16767). Samples whose feature or weight row is zero are left out. If both entropies are zero, the loss
    and its gradient are 0.

    Args:
        features: Features, shape (n, D); they get a gradient.
        labels: Class indices, 0 … C−1, shape (n,).
        weights: Weights of the classifier, shape (C, D); they get a gradient.

    Returns:
        A scalar between 0 and 1.

    Raises:
        DataError: As in `mir_loss`.
    """
    entropies = _of_batch(features, labels, weights)
    ratio = entropies and entropies.hdr
    return _to_features(_zero(features, weights) if ratio is None else ratio, features)


def _of_batch(features: Tensor, labels: Tensor, weights: Tensor) -> Entropies | None:
    """Return entropies of the features and of their labels' weight rows, and the joint one; None without samples."""
    rows, labels, mask = _labelled(features, labels, "")
    heads = _heads(weights, labels, rows.shape[1])
    mask = mask & has_gradient(weights).to(mask.device)[labels]
    n = int(mask.sum())
    if not n:
        return None
    unit, _ = directions(rows[mask])
    present, position, counts = labels[mask].unique(return_inverse=True, return_counts=True)
    heads, _ = directions(heads[present])
    # In a basis of their span, heads have min(k, D) coordinates. The basis is constant in the gradient, which is still
    # exact: a head that leaves the span changes its products with heads inside it only to second order.
    basis = torch.linalg.qr(heads.detach().T).Q
    joint = joint_gram(unit, (heads @ basis)[position])
    return Entropies(
        entropy_of_gram(smaller_gram(unit), n=n),
        entropy_of_spectrum(spectrum_of_repeated(heads, counts)),
        entropy_of_gram(joint, n=n),
        len(joint),
    )


def _labelled(features: Tensor, labels: Tensor, prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows (n, D) as float64, labels (n,) as int64 on the same device, and a mask (n,) of nonzero rows."""
    labels = as_labels(labels, f"{prefix}labels") if not isinstance(labels, Tensor) else labels
    _require_floating(features, f"{prefix}features")
    rows = to_rows(features, f"{prefix}features")
    if labels.shape != rows.shape[:1]:
        raise DataError(f"{prefix}labels: expected one a row, ({len(rows)},), found shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{prefix}labels: expected whole numbers, found {labels.dtype}")
    return rows, labels.to(rows.device, torch.int64), has_gradient(features).to(rows.device)


def _require_floating(tensor: Tensor, name: str) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else f"a {type(tensor).__name__} in place of a tensor"
        raise DataError(f"{name}: expected floating-point numbers, found {kind}")


def _heads(weights: Tensor, labels: Tensor, columns: int) -> Tensor:
    """Return the weight rows (C, D) as float64; raise DataError if they do not fit the labels or the features."""
    _require_floating(weights, "weights")
    if weights.ndim != 2 or weights.shape[1] != columns:
        raise DataError(f"weights: expected shape (classes, {columns}), found {tuple(weights.shape)}")
    heads = to_rows(weights, "weights")
    outside = (labels < 0) | (labels >= len(weights))
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        raise DataError(f"labels: row {first} is {int(labels[first])}, labels must be between 0 and {len(weights) - 1}")
    return heads


def _zero(*inputs: Tensor) -> Tensor:
    """Return 0 in float64 with a gradient of zeros for every input."""
    return torch.stack([where_float64_is(tensor[:0].sum()).double() for tensor in inputs]).sum()


def _to_features(loss: Tensor, features: Tensor) -> Tensor:
    # At least float32, as with autocast: half precision has too few digits for a loss.
    return loss.to(torch.promote_types(features.dtype, torch.float32)).to(features.device)
