"""Layers that are linear maps of their input rows: with a matrix, a convolution, or another affine function."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.errors import DataError
from ckpt_probe.models.calling import evaluating

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PROBED_AT_ONCE = 1024
LARGEST_PROBED = 16_384
"""Maximum number of features of a layer whose weights are computed from its outputs for unit vectors."""

Kind = Literal["linear", "convolution", "cosine", "affine"]
"""Kind of a layer: "linear" and "convolution" compute W z + b with their `weight` and `bias`, a convolution for each
position or the complete map once; "cosine" depends only on the row's direction; "affine" is any other such function."""


def kind_of(layer: nn.Module, received: Tensor, output: Tensor, samples: int) -> Kind | None:
    """Return the kind of linear map of a layer, None if it is not linear.

    The output of a layer with weights must agree with them.

    Args:
        layer: The layer.
        received: Its input, shape (n, …).
        output: Its output, shape (n, …).
        samples: Number of samples n.
    """
    if received.ndim < 2 or output.ndim < 2 or len(received) != samples or len(output) != samples:
        return None
    if not (received.is_floating_point() and output.is_floating_point()):
        return None
    if isinstance(layer, CONVOLUTIONS):
        return (
            "convolution" if _sees_once(layer, received) and _agrees(layer, "convolution", received, output) else None
        )
    if received.shape[:-1] != output.shape[:-1]:
        return None
    weight = getattr(layer, "weight", None)
    shaped = isinstance(weight, Tensor) and weight.shape == (output.shape[-1], received.shape[-1])
    if shaped and _agrees(layer, "linear", received, output):
        return "linear"
    if received.shape[-1] > LARGEST_PROBED:
        return None
    return next((kind for kind in ("affine", "cosine") if _agrees(layer, kind, received, output)), None)


def affine_map(layer: nn.Module, kind: Kind, width: int) -> tuple[Tensor, Tensor | None]:
    """Return weights, shape (C, D), and bias, shape (C,) or None, of a layer.

    For kinds other than "linear" and "convolution" they are computed from its outputs for unit vectors and zero.

    Args:
        layer: The layer.
        kind: Its kind of linear map.
        width: Number of features D of its input.
    """
    if kind in ("linear", "convolution"):
        weight: Any = layer.weight
        bias: Any = getattr(layer, "bias", None)
        return weight.flatten(1), bias
    like = next((tensor for tensor in layer.parameters() if tensor.is_floating_point()), torch.zeros(()))
    with evaluating(layer):
        bias = None if kind == "cosine" else layer(like.new_zeros(1, width))[0]
        parts = []
        for start in range(0, width, PROBED_AT_ONCE):
            count = min(PROBED_AT_ONCE, width - start)
            unit = like.new_zeros(count, width)
            unit[torch.arange(count), torch.arange(start, start + count)] = 1
            parts.append(layer(unit))
    answers = torch.cat(parts)
    return (answers if bias is None else answers - bias).T, bias


def rows_by_position(
    layer: nn.Module, kind: Kind, received: Tensor, output: Tensor, samples: int
) -> tuple[Tensor, Tensor]:
    """Return a layer's input and output as rows, shapes (n, positions, D) and (n, positions, C).

    Args:
        layer: The layer.
        kind: Its kind of linear map.
        received: Its input.
        output: Its output.
        samples: Number of samples n.

    Raises:
        DataError: If the first dimension is not the number of samples.
    """
    if received.ndim < 2 or len(received) != samples or len(output) != samples:
        raise DataError(
            f"a layer takes {tuple(received.shape)} for {samples} samples; rows of features by sample are needed"
        )
    if kind != "convolution":
        return received.reshape(samples, -1, received.shape[-1]), output.reshape(samples, -1, output.shape[-1])
    if isinstance(layer, CONVOLUTIONS) and max(layer.kernel_size) > 1:
        return received.flatten(1)[:, None], output.flatten(1)[:, None]
    return received.flatten(2).transpose(1, 2), output.flatten(2).transpose(1, 2)


def as_rows(kind: Kind, features: Tensor) -> Tensor:
    """Normalise rows, shape (…, D), to length 1 for a cosine; return others unchanged."""
    return F.normalize(features, dim=-1) if kind == "cosine" else features


def _sees_once(layer: nn.Module, received: Tensor) -> bool:
    """Return whether a convolution has one output per position, or one for its complete input."""
    if not isinstance(layer, CONVOLUTIONS) or layer.groups != 1 or received.ndim != 2 + len(layer.kernel_size):
        return False
    if any(padding != 0 for padding in layer.padding):
        return False
    at_each = max(layer.kernel_size) == max(layer.stride) == 1
    return at_each or tuple(received.shape[2:]) == layer.kernel_size


def _agrees(layer: nn.Module, kind: Kind, received: Tensor, output: Tensor) -> bool:
    """Return whether a layer's output agrees with its weights up to rounding."""
    features, wanted = rows_by_position(layer, kind, received.detach(), output.detach(), len(received))
    try:
        with torch.no_grad():
            weights, bias = affine_map(layer, kind, features.shape[-1])
    except Exception:  # the layer refuses unit vectors
        return False
    if weights.shape != (wanted.shape[-1], features.shape[-1]):
        return False
    predicted = F.linear(as_rows(kind, features).float(), weights.float(), None if bias is None else bias.float())
    finite = wanted.isfinite()
    if not bool(finite.all()) and kind in ("affine", "cosine"):
        return False
    # In a diverged model only finite outputs can be compared.
    predicted, wanted = predicted[finite], wanted[finite].float()
    tolerance = 0.05 if torch.finfo(output.dtype).bits < 32 else 1e-3
    return not len(wanted) or bool(((predicted - wanted).abs() <= tolerance * wanted.abs().max()).all())
