"""Numbers of one document from the rows of its positions: entropy, entropy of centred rows, and curvature."""

import torch
from torch import Tensor

from ckpt_probe.metrics.entropy import entropy_of_gram
from ckpt_probe.metrics.gram import directions, smaller_gram
from ckpt_probe.metrics.rounding import centred, near_one


def document_entropy(rows: Tensor) -> Tensor | None:
    """Return the entropy (nats, 0-d) of K / tr K with K = X Xᵀ; None if all rows have zero length.

    Skean et al. 2025, arXiv 2502.02013, the entropy of a prompt of order 1. Rows are not scaled to unit length, so that
    a long one counts more.

    Args:
        rows: Rows of the document's positions, (T, D), float64.
    """
    return entropy_of_gram(smaller_gram(near_one(rows))) if bool(rows.any()) else None


def centred_entropy(rows: Tensor) -> Tensor | None:
    """Return the entropy (nats, 0-d) of the directions of rows minus their mean; None if all rows are equal.

    Wei et al. 2024, arXiv 2401.17139: its exponential is the effective rank of a document.

    Args:
        rows: Rows of the document's positions, (T, D), float64.
    """
    unit, _ = directions(centred(rows))
    return entropy_of_gram(smaller_gram(unit), n=len(unit)) if len(unit) else None


def curvature(rows: Tensor, positions: Tensor | None = None) -> Tensor | None:
    """Return the mean angle (radians, 0-d) between successive steps x_{t+1} − x_t; None without two steps.

    Hosseini and Fedorenko 2023, as Skean et al. 2025 use it. Steps of zero length have no direction and are left out.

    Args:
        rows: Rows of the document's positions, (T, D), float64.
        positions: Position of each row in the document, (T,); 0 … T−1 if None. Only neighbours make a step.
    """
    steps = near_one(rows).diff(dim=0)
    unit = torch.zeros_like(steps)
    directed, moves = directions(steps)
    unit[moves] = directed
    if positions is not None:
        moves = moves & (positions.diff() == 1)
    cosines = (unit[1:] * unit[:-1]).sum(dim=1)[moves[1:] & moves[:-1]]
    return torch.arccos(cosines.clamp(-1, 1)).mean() if len(cosines) else None
