"""Matrix entropy: the entropy of the spectrum of a Gram matrix, in nats."""

import math

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.metrics.gram import Array, smaller_gram, to_rows, unit_rows


def matrix_entropy(X: Array, *, alpha: float = 1.0, normalized: bool = False) -> float | Tensor:
    """Matrix entropy of the Gram matrix of X's rows: −tr((K/n) log (K/n)), in nats (arXiv 2409.16767, definition 1).

    X: (n, d); rows of zero length are left out. `alpha` other than 1 gives Rényi's, (1/(1−α)) log tr((K/n)^α)
    (Giraldo and Príncipe 2013). `normalized` divides by log n. Between 0 and log n. Returns a float for numpy, a 0-d
    tensor with gradient for torch. Raises DataError as `gram` does, and for an alpha that is not positive and finite.
    """
    rows, _ = unit_rows(to_rows(X))
    n = rows.shape[0]
    entropy = entropy_of_gram(smaller_gram(rows), n=n, alpha=alpha)
    if normalized and n > 1:
        entropy = entropy / math.log(n)
    return as_given(entropy, X)


def effective_rank(X: Array) -> float | Tensor:
    """exp(matrix entropy) of X's rows: how many directions they use (Roy and Vetterli 2007). (n, d) → 1 … min(n, d)."""
    entropy = matrix_entropy(X)
    return torch.exp(entropy) if isinstance(entropy, Tensor) else math.exp(entropy)


def erank_difference(first: Array, rows: Array) -> float | Tensor:
    """How many fewer directions `rows` use than `first`: effective rank of first − that of rows, each less its mean.

    first: (n, d), features of the untrained (or first) checkpoint; rows: (m, e), those of another one on the same
    inputs. Their means are removed and the rows scaled to unit length (Wei et al. 2024, arXiv 2401.17139). Above 0
    where training has concentrated the features. Result and errors as `effective_rank`.
    """
    before, after = (X - X.mean(dim=0) for X in (to_rows(first, "first"), to_rows(rows, "rows")))
    return as_given(torch.exp(matrix_entropy(before)) - torch.exp(matrix_entropy(after)), first, rows)  # pyright: ignore[reportArgumentType]


def entropy_of_gram(K: Tensor, *, n: int | None = None, alpha: float = 1.0) -> Tensor:
    """Matrix entropy (nats) of a Gram matrix K, or of any matrix with K's non-zero eigenvalues whose trace is n.

    K: (m, m) symmetric positive semi-definite; n: number of rows behind it, m where not given. 0-d tensor.
    """
    K = K / (n or K.shape[0])
    if alpha == 2:
        # The sum of squared eigenvalues is that of squared entries.
        return -torch.log((K * K).sum())
    return entropy_of_spectrum(spectrum(K), alpha=alpha)


def spectrum(matrix: Tensor) -> Tensor:
    """Eigenvalues (k,) of a symmetric matrix (m, m) without negative ones; those below m · ε · the largest left out.

    Only the lower triangle is read. With gradient.
    """
    eigenvalues = torch.linalg.eigvalsh(matrix)
    return eigenvalues[eigenvalues > smallest_present(eigenvalues.detach())]


def smallest_present(eigenvalues: Tensor) -> Tensor:
    """The size under which an eigenvalue of (…, m) is rounding, m · ε · the largest, (…, 1)."""
    m, eps = eigenvalues.shape[-1], torch.finfo(eigenvalues.dtype).eps
    return m * eps * eigenvalues.amax(dim=-1, keepdim=True)


def entropy_of_spectrum(eigenvalues: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Entropy (nats) of positive eigenvalues (k,) that sum to 1. 0-d tensor.

    Raises DataError for an alpha that is not positive and finite.
    """
    require_order(alpha)
    if alpha == 1:
        return -(eigenvalues * eigenvalues.log()).sum()
    return eigenvalues.pow(alpha).sum().log() / (1 - alpha)


def require_order(alpha: float) -> None:
    """Raise DataError for an alpha that is no order of an entropy."""
    if not (alpha > 0 and math.isfinite(alpha)):
        raise DataError(f"alpha: the order of an entropy must be positive and finite, found {alpha}")


def as_given(value: Tensor, *inputs: Array) -> float | Tensor:
    """`value` as a 0-d tensor where an input is a tensor, else as a float."""
    return value if any(isinstance(X, Tensor) for X in inputs) else float(np.float64(value.item()))
