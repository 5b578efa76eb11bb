"""Layers that are linear maps of the rows they are given: with a matrix, a convolution, or found by asking them."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.errors import DataError
from ckpt_probe.models.calling import evaluating

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PROBED_AT_ONCE = 1024
LARGEST_PROBED = 16_384
"""Features of a layer that is asked for its weights by unit vectors, whose number is that of the features."""

Kind = Literal["linear", "convolution", "cosine", "affine"]
"""What a layer does to a row: W z + b with its own `weight` and `bias`, as a matrix or as a convolution that sees each
position, or the whole map, once; a product with the row's direction alone; or any other function that is affine."""


def kind_of(layer: nn.Module, given: Tensor, output: Tensor, samples: int) -> Kind | None:
    """What kind of linear map gave a layer's output (n, …) for its input (n, …); None where it is none.

    A layer with weights of its own is taken at its word only where its output is what they say.
    """
    if given.ndim < 2 or output.ndim < 2 or len(given) != samples or len(output) != samples:
        return None
    if not (given.is_floating_point() and output.is_floating_point()):
        return None
    if isinstance(layer, CONVOLUTIONS):
        return "convolution" if _sees_once(layer, given) and _agrees(layer, "convolution", given, output) else None
    if given.shape[:-1] != output.shape[:-1]:
        return None
    weight = getattr(layer, "weight", None)
    shaped = isinstance(weight, Tensor) and weight.shape == (output.shape[-1], given.shape[-1])
    if shaped and _agrees(layer, "linear", given, output):
        return "linear"
    if given.shape[-1] > LARGEST_PROBED:
        return None
    return next((kind for kind in ("affine", "cosine") if _agrees(layer, kind, given, output)), None)


def affine_map(layer: nn.Module, kind: Kind, width: int) -> tuple[Tensor, Tensor | None]:
    """Weights (C, D) and bias (C,) of a layer of `width` features.

    Those of a layer that has none of its own are what it answers to unit vectors, and to zero.
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


def laid_out(layer: nn.Module, kind: Kind, given: Tensor, output: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """A layer's input and output as rows: (n, positions, D) and (n, positions, C).

    Raises DataError where the first dimension is not the samples'.
    """
    if given.ndim < 2 or len(given) != samples or len(output) != samples:
        raise DataError(
            f"a layer takes {tuple(given.shape)} for {samples} samples; rows of features by sample are needed"
        )
    if kind != "convolution":
        return given.reshape(samples, -1, given.shape[-1]), output.reshape(samples, -1, output.shape[-1])
    if isinstance(layer, CONVOLUTIONS) and max(layer.kernel_size) > 1:
        return given.flatten(1)[:, None], output.flatten(1)[:, None]
    return given.flatten(2).transpose(1, 2), output.flatten(2).transpose(1, 2)


def as_rows(kind: Kind, features: Tensor) -> Tensor:
    """Rows (…, D) as the map itself sees them: those of a cosine have length 1."""
    return F.normalize(features, dim=-1) if kind == "cosine" else features


def _sees_once(layer: nn.Module, given: Tensor) -> bool:
    """Whether a convolution sees each position, or its whole input, exactly once."""
    if not isinstance(layer, CONVOLUTIONS) or layer.groups != 1 or given.ndim != 2 + len(layer.kernel_size):
        return False
    if any(padding != 0 for padding in layer.padding):
        return False
    at_each = max(layer.kernel_size) == max(layer.stride) == 1
    return at_each or tuple(given.shape[2:]) == layer.kernel_size


def _agrees(layer: nn.Module, kind: Kind, given: Tensor, output: Tensor) -> bool:
    """Whether a layer's output is what its weights say, to rounding."""
    features, wanted = laid_out(layer, kind, given.detach(), output.detach(), len(given))
    try:
        with torch.no_grad():
            weights, bias = affine_map(layer, kind, features.shape[-1])
    except Exception:  # a layer that cannot be asked, for reasons of its own, is not found this way
        return False
    if weights.shape != (wanted.shape[-1], features.shape[-1]):
        return False
    found = F.linear(as_rows(kind, features).float(), weights.float(), None if bias is None else bias.float())
    finite = wanted.isfinite()
    if not bool(finite.all()) and kind in ("affine", "cosine"):
        return False
    # Of a diverged model, the weights of a layer that has some are all that can be compared.
    found, wanted = found[finite], wanted[finite].float()
    tolerance = 0.05 if torch.finfo(output.dtype).bits < 32 else 1e-3
    return not len(wanted) or bool(((found - wanted).abs() <= tolerance * wanted.abs().max()).all())
