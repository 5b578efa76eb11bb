"""A model by name: builtin, of a framework, an entry point, or anybody's own function."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import nn

from ckpt_probe.errors import CkptProbeError, UsageError, last_line
from ckpt_probe.models.builtin import BUILTIN
from ckpt_probe.models.external.filling import Unfilled
from ckpt_probe.models.external.hugging_face import hugging_face_arguments, hugging_face_model
from ckpt_probe.models.external.image_models import (
    OF_WEIGHTS,
    timm_arguments,
    timm_model,
    torchvision_arguments,
    torchvision_model,
)
from ckpt_probe.models.external.sizing import Shapes, SizeNames, Skeleton, outline, shapes_of, told_sizes
from ckpt_probe.plugins import is_function_name, load_function, registered

ENTRY_POINTS = "ckpt_probe.models"
FRAMEWORKS = {"timm": timm_model, "torchvision": torchvision_model, "hf": hugging_face_model}
"""What builds a model called `timm:NAME`, `torchvision:NAME` or `hf:DIR`."""

CLASSES = ("classes", "num_classes")
"""How a function of anybody's may call its number of classes."""


def build_model(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
    initialised: bool = True,
) -> nn.Module:
    """The network that `name` and `arguments` describe, freshly initialised.

    `input_shape` (of one sample) and `classes` are passed on to functions that take them and were not given them.
    initialised: False where a checkpoint is about to replace all parameters: those of a framework's model are then left
    as they were allocated.
    Raises UsageError for an unknown name, arguments that do not fit, or a function that raises or returns no module.
    """
    given = model_arguments(name, arguments, input_shape=input_shape, classes=classes)
    framework, place = _of_framework(name)
    if framework is None:
        return _called(name, _function(name), given)
    with nullcontext() if initialised else Unfilled():
        return framework(place, given)


def model_arguments(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
    padding: int | None = None,
    tensors: Shapes | None = None,
) -> dict[str, Any]:
    """Return the complete arguments, with which `build_model` alone builds the same network again.

    Args:
        name: The model, as `build_model` takes it.
        arguments: Arguments that the caller states; they take precedence.
        input_shape: The shape of one sample of the data.
        classes: The number of classes of the data.
        padding: The number of the token that pads the texts of the data.
        tensors: Shapes of the checkpoint's tensors, whose sizes take precedence over those of the data.

    Raises:
        UsageError: If there is no such model, or it does not take such arguments.
    """
    given = dict(arguments or {})
    kind, _, place = name.partition(":")
    if kind == "timm" and place:
        return timm_arguments(place, given, input_shape=input_shape, classes=classes, tensors=tensors)
    if kind == "torchvision" and place:
        return torchvision_arguments(place, given, input_shape=input_shape, classes=classes, tensors=tensors)
    if kind == "hf" and place:
        return hugging_face_arguments(place, given, classes=classes, padding=padding, tensors=tensors)
    function = _function(name)
    parameters = _parameters(function)
    if input_shape is not None and "input_shape" in parameters:
        given.setdefault("input_shape", list(input_shape))
    called = next((parameter for parameter in CLASSES if parameter in parameters), None)
    if called is None or classes is None or called in given:
        return given
    told: Mapping[str, int] = {}
    if tensors is not None:
        model = outline(lambda arguments: _called(name, function, arguments), {**given, called: classes})
        told = told_sizes(Skeleton(shapes_of(model), classes), tensors, SizeNames(called))
    return {**given, called: classes, **told}


def assumed_arguments(name: str) -> Mapping[str, Any]:
    """Return the arguments with which a framework builds a model for its own weights, and which no file records."""
    kind, _, model = name.partition(":")
    return OF_WEIGHTS.get(model, {}) if kind == "torchvision" else {}


def functions_named(name: str) -> list[str]:
    """Each function of anybody's that building a model called `name` would import; none for what comes with us."""
    known = name in BUILTIN or not is_function_name(name) or name in registered(ENTRY_POINTS)
    return [] if known or _of_framework(name)[0] else [name]


def arguments_taken(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that the function of anybody's called `name` takes by name; none for what comes with us."""
    taken = _parameters(_function(name)) if functions_named(name) else set()
    return {key: value for key, value in values.items() if key in taken}


def _of_framework(name: str) -> tuple[Callable[[str, Mapping[str, Any]], nn.Module] | None, str]:
    kind, _, place = name.partition(":")
    return (FRAMEWORKS.get(kind) if place else None), place


def _function(name: str) -> Callable[..., Any]:
    if name in BUILTIN:
        return BUILTIN[name]
    if name in (others := registered(ENTRY_POINTS)):
        return others[name]
    if is_function_name(name):
        return load_function(name)
    frameworks = ["timm:NAME", "torchvision:NAME", "hf:DIR"]
    known = ", ".join([*BUILTIN, *others, *frameworks, "package.module:function", "path/to/file.py:function"])
    raise UsageError(f"no model called {name!r}; there are: {known}")


def _called(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> nn.Module:
    try:
        model = function(**given)
    except CkptProbeError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"model {name}: cannot be built with arguments {given}: {error}") from error
    except Exception as error:
        raise UsageError(f"model {name}: the function raised {last_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name}: the function returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()
