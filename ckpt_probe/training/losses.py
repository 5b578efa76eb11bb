"""Losses of matrix information for any training loop: each is minimised, task_loss + λ · loss.

Spectra are taken in float64 whatever the features' dtype (on the CPU for features on MPS, which has none), from the
smaller side of each Gram matrix; loss and gradient come back to the features' device, the gradient in their dtype.
Eigenvalues that are rounding count as zero and have no gradient, which is no approximation: a Gram matrix is R Rᵀ, and
the entropy's gradient by R, −(2/n) (log(K/n) + I) R, vanishes where R does. So it is finite for repeated rows and
batches of low rank. `matrix_entropy` is that of the metrics, which has the same gradient.
"""

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics import matrix_entropy
from ckpt_probe.metrics.entropy import entropy_of_gram, entropy_of_spectrum, without_small
from ckpt_probe.metrics.gram import directions, has_gradient, smaller_gram, to_rows, where_float64_is
from ckpt_probe.metrics.information import Entropies, joint_gram
from ckpt_probe.moments.grouping import stacks
from ckpt_probe.moments.levels.spectra import of_label_rows, of_stack

__all__ = ["cma", "hdr_loss", "matrix_entropy", "mir_loss"]


def cma(features: Tensor, labels: Tensor, other_features: Tensor, other_labels: Tensor) -> Tensor:
    """Alignment of two sources by class: mean over classes of H(gram(F_c)) / log n_c, a scalar between 0 and 1.

    F_c are the n_c rows of class c from both sources. features: (n, D), labels (n,) any whole numbers; other_features:
    (m, D), other_labels (m,), such as text features, anchors of classes, or the same samples under another model. The
    mean is over every label in either source; a class with fewer than two rows that have a direction counts as 0 and
    has no gradient. 0 where each class has one direction. Raises DataError for NaN or infinity and shapes that do not
    fit. In nats over nats (matrix entropy: arXiv 2409.16767, definition 1).
    """
    first, labels, kept = _labelled(features, labels, "")
    second, other_labels, other_kept = _labelled(other_features, other_labels, "other_")
    if first.shape[1] != second.shape[1]:
        raise DataError(f"features have {first.shape[1]} columns and other_features {second.shape[1]}")
    kept, both = torch.cat([kept, other_kept]), torch.cat([labels, other_labels])
    unit, _ = directions(torch.cat([first, second])[kept])
    total = _zero(features, other_features)
    for stack in stacks(unit, both[kept]):
        # Classes of one row are in a stack of their own; their entropy is 0 and log n is too.
        if stack.rows.shape[1] > 1:
            entropies = entropy_of_spectrum(without_small(of_stack(stack)))
            total = total + (entropies / stack.sizes.double().log()).sum()
    return _given(total / len(both.unique()), features)


def mir_loss(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """−MIR of the batch: less mutual information ratio costs more, so that minimising it raises MIR. A scalar ≤ 0.

    MIR of gram(features) and the gram of the weight rows of their labels (arXiv 2406.03999; definition 3 of arXiv
    2409.16767). features: (n, D); labels: (n,), whole numbers in 0 … C−1; weights: (C, D), the classifier's. Gradient
    for features and weights. Samples whose feature or weight row has no direction are left out. Where MIR is undefined,
    one entropy being zero (one class in the batch, one sample, one direction), the loss is 0 and so is its gradient.
    Raises DataError for NaN or infinity, labels outside the weight rows, and shapes that do not fit.
    """
    entropies = _of_batch(features, labels, weights)
    ratio = entropies and entropies.mir
    return _given(_zero(features, weights) if ratio is None else -ratio, features)


def hdr_loss(features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """HDR of the batch: minimising it brings both entropies together. A scalar between 0 and 1.

    HDR of gram(features) and the gram of the weight rows of their labels (arXiv 2406.03999; definition 4 of arXiv
    2409.16767). Inputs, what is left out and what is raised as `mir_loss`; 0, with gradient 0, where both entropies
    are zero.
    """
    entropies = _of_batch(features, labels, weights)
    ratio = entropies and entropies.hdr
    return _given(_zero(features, weights) if ratio is None else ratio, features)


def _of_batch(features: Tensor, labels: Tensor, weights: Tensor) -> Entropies | None:
    """Entropies of the features, of their labels' weight rows, and the joint one; None where no sample is left."""
    rows, labels, kept = _labelled(features, labels, "")
    heads = _heads(weights, labels, rows.shape[1])
    kept = kept & has_gradient(weights).to(kept.device)[labels]
    n = int(kept.sum())
    if not n:
        return None
    unit, _ = directions(rows[kept])
    present, position, counts = labels[kept].unique(return_inverse=True, return_counts=True)
    heads, _ = directions(heads[present])
    joint = _joint(unit, heads, position)
    return Entropies(
        entropy_of_gram(smaller_gram(unit), n=n),
        entropy_of_spectrum(of_label_rows(heads, counts)),
        entropy_of_gram(joint, n=n),
        len(joint),
    )


def _joint(unit: Tensor, heads: Tensor, position: Tensor) -> Tensor:
    """The joint Gram matrix of unit rows (n, D) and heads (k, D) at their positions (n,), from its smaller side."""
    # In a basis of their span min(k, D) coordinates say what D do. It holds still in the gradient, which is exact all
    # the same: a head that leaves the span changes its products with heads inside it by second order only.
    basis = torch.linalg.qr(heads.detach().T).Q
    return joint_gram(unit, (heads @ basis)[position])


def _labelled(features: Tensor, labels: Tensor, prefix: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (n, D) as float64, and where they are their labels (n,) as int64, and which rows have a direction (n,)."""
    if not features.is_floating_point():
        raise DataError(f"{prefix}features: expected floating-point numbers, found {features.dtype}")
    rows = to_rows(features, f"{prefix}features")
    if labels.shape != rows.shape[:1]:
        raise DataError(f"{prefix}labels: expected one a row, ({len(rows)},), found shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(f"{prefix}labels: expected whole numbers, found {labels.dtype}")
    return rows, labels.to(rows.device, torch.int64), has_gradient(features).to(rows.device)


def _heads(weights: Tensor, labels: Tensor, columns: int) -> Tensor:
    """Return the weight rows (C, D) as float64. Raises DataError where they do not fit the labels or the features."""
    if not weights.is_floating_point():
        raise DataError(f"weights: expected floating-point numbers, found {weights.dtype}")
    if weights.ndim != 2 or weights.shape[1] != columns:
        raise DataError(f"weights: expected shape (classes, {columns}), found {tuple(weights.shape)}")
    heads = to_rows(weights, "weights")
    outside = (labels < 0) | (labels >= len(weights))
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        raise DataError(f"labels: row {first} is {int(labels[first])}, labels must be between 0 and {len(weights) - 1}")
    return heads


def _zero(*inputs: Tensor) -> Tensor:
    """0 in float64 with a gradient of zeros for every input."""
    return torch.stack([where_float64_is(given[:0].sum()).double() for given in inputs]).sum()


def _given(loss: Tensor, features: Tensor) -> Tensor:
    # Half precision has too few digits for a loss; float32 is what autocast leaves losses in.
    return loss.to(torch.promote_types(features.dtype, torch.float32)).to(features.device)
