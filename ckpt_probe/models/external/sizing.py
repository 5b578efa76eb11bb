"""The sizes of a model that a checkpoint's own tensors tell: number of classes, input channels, side of the images."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ckpt_probe.wrappers import unwrapped

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a checkpoint's tensors, by name."""

Build = Callable[[dict[str, Any]], nn.Module]
"""Arguments → a model."""


@dataclass(frozen=True)
class SizeNames:
    """How a source of models calls the arguments that set their sizes; None where it has no such argument."""

    classes: str | None = None
    channels: str | None = None
    side: str | None = None


@dataclass(frozen=True)
class Skeleton:
    """The shapes of a model's tensors; its number of classes and the side of its images and patches, where known."""

    shapes: Shapes
    classes: int | None = None
    side: int | None = None
    patch: int | None = None


def outline(build: Build, arguments: dict[str, Any]) -> nn.Module:
    """A model of no memory, built on torch's meta device; a whole one where its code needs the numbers."""
    try:
        with torch.device("meta"):
            return build(arguments)
    except Exception:
        return build(arguments)


def shapes_of(model: nn.Module) -> Shapes:
    """The shape of each of a model's tensors."""
    return {name: tuple(entry.shape) for name, entry in model.state_dict().items() if isinstance(entry, torch.Tensor)}


def told_sizes(skeleton: Skeleton, tensors: Shapes, names: SizeNames) -> dict[str, int]:
    """Arguments with which the model would have the checkpoint's shapes, where those differ from the skeleton's.

    Classes are told by tensors that differ only in their first dimension, where the skeleton has its number of classes;
    channels by convolutions that differ in their second; the side of square images by the number of embedded positions.
    """
    found = _pairs(skeleton.shapes, tensors)
    told: dict[str, int] = {}
    classes = {there[0] for here, there in found if here[:1] == (skeleton.classes,) and here[1:] == there[1:]}
    if names.classes and len(classes) == 1:
        told[names.classes] = classes.pop()
    # An embedding of positions, (1, positions, D), differs in its second dimension too.
    layers = [pair for pair in found if len(pair[0]) > 2 and not _positions(*pair)]
    channels = {there[1] for here, there in layers if here[:1] + here[2:] == there[:1] + there[2:]}
    if names.channels and len(channels) == 1:
        told[names.channels] = channels.pop()
    sides = {_side(skeleton, here[1], there[1]) for here, there in found if _positions(here, there)}
    if names.side and len(sides) == 1 and (side := sides.pop()):
        told[names.side] = side
    return told


def fits(skeleton: Skeleton, tensors: Shapes) -> bool:
    """Whether every tensor that both have has one shape."""
    return not _pairs(skeleton.shapes, tensors)


def square_side(size: Any) -> int | None:
    """Return the side of a square from a number or a pair of equal numbers, None for anything else."""
    if isinstance(size, tuple | list):
        return int(size[0]) if len(set(size)) == 1 else None
    return size if isinstance(size, int) else None


def _pairs(here: Shapes, there: Shapes) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of the same name and number of dimensions that differ."""
    given: Mapping[str, Any] = unwrapped(there, set(here))  # pyright: ignore[reportArgumentType]
    shared = [(shape, given[name]) for name, shape in here.items() if name in given]
    return [(shape, other) for shape, other in shared if shape != other and len(shape) == len(other)]


def _positions(here: tuple[int, ...], there: tuple[int, ...]) -> bool:
    return len(here) == 3 and here[0] == there[0] == 1 and here[2] == there[2]


def _side(skeleton: Skeleton, here: int, there: int) -> int | None:
    """The side of images of `there` positions, of which as many as in the skeleton are no patches."""
    if not skeleton.side or not skeleton.patch:
        return None
    patches = there - here + (skeleton.side // skeleton.patch) ** 2
    root = math.isqrt(max(patches, 0))
    return skeleton.patch * root if root and root**2 == patches else None
