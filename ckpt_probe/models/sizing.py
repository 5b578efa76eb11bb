"""Sizes of a model from the shapes of a checkpoint's tensors: number of classes, input channels, side of images."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ckpt_probe.budget import OverBudget
from ckpt_probe.wrappers import unwrapped

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a checkpoint's tensors, by name."""

Build = Callable[[dict[str, Any]], nn.Module]
"""Arguments → a model."""


@dataclass(frozen=True)
class SizeNames:
    """Names of a library's arguments for the sizes of a model; None for arguments that it lacks."""

    classes: str | None = None
    channels: str | None = None
    side: str | None = None


def outline(build: Build, arguments: dict[str, Any]) -> nn.Module:
    """Build a model on torch's meta device, or with memory if its code needs the values."""
    try:
        with torch.device("meta"):
            return build(arguments)
    except OverBudget:
        raise
    except Exception:
        return build(arguments)


def shapes_of(model: nn.Module) -> Shapes:
    """Return the shape of each tensor of a model; lazy modules have none yet."""
    tensors = {name: entry for name, entry in model.state_dict().items() if isinstance(entry, torch.Tensor)}
    return {name: tuple(entry.shape) for name, entry in tensors.items() if not is_lazy(entry)}


def sizes_from_tensors(
    model: nn.Module, tensors: Shapes, names: SizeNames, classes: int | None, embedding: Any = None
) -> dict[str, int]:
    """Return the arguments that give a model the checkpoint's shapes, as far as these differ from the model's.

    The number of classes follows from tensors that differ only in a first dimension equal to the model's number of
    classes, channels from convolutions that differ in their second dimension, and the side of square images from the
    number of embedded positions.

    Args:
        model: The model as built.
        tensors: Shapes of the checkpoint's tensors.
        names: The library's names of the arguments.
        classes: Number of classes of the model, None if unknown.
        embedding: Part of the model that has the sizes of its images and of their patches; None without images.
    """
    pairs = _pairs(shapes_of(model), tensors)
    sizes: dict[str, int] = {}
    numbers = {stored[0] for built, stored in pairs if built[:1] == (classes,) and built[1:] == stored[1:]}
    if names.classes and len(numbers) == 1:
        sizes[names.classes] = numbers.pop()
    # An embedding of positions, (1, positions, D), differs in its second dimension too.
    layers = [pair for pair in pairs if len(pair[0]) > 2 and not _positions(*pair)]
    channels = {stored[1] for built, stored in layers if built[:1] + built[2:] == stored[:1] + stored[2:]}
    if names.channels and len(channels) == 1:
        sizes[names.channels] = channels.pop()
    if names.side:
        image, patch = (_square_side(getattr(embedding, name, None)) for name in (names.side, "patch_size"))
        sides = {_side(image, patch, built[1], stored[1]) for built, stored in pairs if _positions(built, stored)}
        if len(sides) == 1 and (side := sides.pop()):
            sizes[names.side] = side
    return sizes


def fits(model: nn.Module, tensors: Shapes) -> bool:
    """Return whether all tensors that both have agree in shape."""
    return not _pairs(shapes_of(model), tensors)


def _square_side(size: Any) -> int | None:
    """Return the side of a square from a number or a pair of equal numbers, None for anything else."""
    if isinstance(size, tuple | list):
        return int(size[0]) if len(set(size)) == 1 else None
    return size if isinstance(size, int) else None


def _pairs(built: Shapes, stored: Shapes) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return pairs of different shapes with the same name and number of dimensions."""
    tensors: Mapping[str, Any] = unwrapped(stored, set(built))  # pyright: ignore[reportArgumentType]
    shared = [(shape, tensors[name]) for name, shape in built.items() if name in tensors]
    return [(shape, other) for shape, other in shared if shape != other and len(shape) == len(other)]


def _positions(built: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    return len(built) == 3 and built[0] == stored[0] == 1 and built[2] == stored[2]


def _side(image: int | None, patch: int | None, built: int, stored: int) -> int | None:
    """Return the side of images with `stored` positions, of which those without patch are as many as in the model.

    Args:
        image: Side of the model's images in pixels, None if unknown.
        patch: Side of its patches in pixels, None if unknown.
        built: Number of positions of the model.
        stored: Number of positions of the checkpoint.
    """
    if not image or not patch:
        return None
    patches = stored - built + (image // patch) ** 2
    root = math.isqrt(max(patches, 0))
    return patch * root if root and root**2 == patches else None
