"""Influence of rows on a joint entropy without its eigenvectors: one short Lanczos recurrence for each of some rows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.metrics.lanczos import Lanczos
from ckpt_probe.metrics.stochastic import Estimate
from ckpt_probe.moments.sampling import JointOperator, MomentsOperator
from ckpt_probe.moments.subset import ranks_in_classes

ROWS = 512
"""Rows whose influence is computed; their standard deviation is known to about 3 %."""

STEPS = 6
"""Steps of each recurrence; the influence of a row needs far fewer digits than the entropy."""

ROWS_OF_SAMPLED, FEWEST, STEPS_OF_LARGE, LARGE = 256, 48, 3, 10_000
"""Rows for a sampled entropy. If its vectors have more than `LARGE` numbers, fewer rows and steps in single precision
take about as long as the entropy. The fewest rows determine a standard deviation to 10 %, and three steps to 5 %."""

ROWS_AT_ONCE = 32

InfluencesOfOrder = Callable[[float, float], Tensor]
"""Order and entropy → derivatives (m,) of the entropy by the weight of each row, NaN where they are unknown."""


def influences_of_rows(
    operator: JointOperator | MomentsOperator,
    samples: int,
    rows: Tensor,
    classes: Tensor,
    estimate: Estimate | None = None,
) -> InfluencesOfOrder:
    """Return the derivatives of the joint entropy by the weights of rows, for each order.

    With the vector φ of a row, the derivative of the entropy is (−φᵀ log(A) φ − H)/N; −φᵀ log(A) φ is a Gauss rule of
    a recurrence that starts at φ. If A is the Gram matrix K of the rows, it is −N eᵀ K log(K) e with the unit vector e
    of the row.

    Args:
        operator: The joint matrix.
        samples: Number of rows N.
        rows: Unit rows of a sample, (m, D).
        classes: Indices of their classes, (m,).
        estimate: The entropy if it is sampled; the derivatives then take about as many products as the entropy.
    """
    most, steps, dtype = ROWS if estimate is None else ROWS_OF_SAMPLED, STEPS, torch.float64
    if estimate is not None and operator.size > LARGE:
        steps, dtype = STEPS_OF_LARGE, torch.float32
        most = min(most, max(FEWEST, estimate.probes * estimate.steps // steps))
    chosen = torch.argsort(ranks_in_classes(classes), stable=True)[:most]  # as many of each class
    nodes, weights, of_gram = [], [], False
    for part in chosen.split(ROWS_AT_ONCE):
        vectors, of_gram = operator.rows_as_vectors(rows[part], classes[part])
        rules = Lanczos(operator, vectors.to(dtype).contiguous()).run(steps)
        nodes.append(rules.nodes[0])
        weights.append(rules.weights[0])
    theta, shares = torch.cat(nodes).double(), torch.cat(weights).double()
    theta = theta.clamp(min=torch.finfo(theta.dtype).tiny)

    def derivatives(order: float, entropy: float) -> Tensor:
        powers = theta.pow(order - 1 if not of_gram else order) * (samples if of_gram else 1)
        if order == 1:
            values = -(shares * powers * theta.log()).sum(dim=1) - entropy
        else:
            trace = torch.tensor((1 - order) * entropy).exp()
            values = order / (1 - order) * ((shares * powers).sum(dim=1) / trace - 1)
        result = rows.new_full((len(rows),), torch.nan)
        result[chosen] = values.to(rows) / samples
        return result

    return derivatives


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        return None, gradients[0] * ctx.saved_tensors[0], None


def linear(value: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """Return a value (0-d) whose gradient along weights (m,) is `gradient` (m,), which may contain NaN."""
    return _Linear.apply(value, weights, gradient)  # pyright: ignore[reportReturnType]
