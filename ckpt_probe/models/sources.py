"""A model by name: builtin, an entry point, or anybody's `package.module:function`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ckpt_probe.errors import UsageError
from ckpt_probe.models.builtin import BUILTIN
from ckpt_probe.plugins import is_function_name, load_function, registered

ENTRY_POINTS = "ckpt_probe.models"


def build_model(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
) -> nn.Module:
    """The network that `name` and `arguments` describe, freshly initialised.

    `input_shape` (of one sample) and `classes` are passed on to functions that take them and were not given them.
    Raises UsageError for an unknown name, or arguments that do not fit.
    """
    function = _function(name)
    given = model_arguments(name, arguments, input_shape=input_shape, classes=classes)
    try:
        model = function(**given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model {name}: cannot be built with arguments {given}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name}: the function returned {type(model).__name__}, not a torch.nn.Module")
    return model


def model_arguments(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
) -> dict[str, Any]:
    """The complete arguments, with which `build_model` alone builds the same network again."""
    given = dict(arguments or {})
    parameters = _parameters(_function(name))
    if input_shape is not None and "input_shape" in parameters:
        given.setdefault("input_shape", list(input_shape))
    if classes is not None and "classes" in parameters:
        given.setdefault("classes", classes)
    return given


def functions_named(name: str) -> list[str]:
    """Each `package.module:function` that building a model called `name` would import; none for what comes with us."""
    known = name in BUILTIN or not is_function_name(name) or name in registered(ENTRY_POINTS)
    return [] if known else [name]


def _function(name: str) -> Callable[..., Any]:
    if name in BUILTIN:
        return BUILTIN[name]
    if name in (others := registered(ENTRY_POINTS)):
        return others[name]
    if is_function_name(name):
        return load_function(name)
    known = ", ".join([*BUILTIN, *others, "package.module:function"])
    raise UsageError(f"no model called {name!r}; there are: {known}")


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()
