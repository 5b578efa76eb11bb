"""Models by name: builtin, from a framework, from an entry point, or from a user's function."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode

from ckpt_probe.budget import ENTRY, Budget
from ckpt_probe.errors import CkptProbeError, UsageError, last_line
from ckpt_probe.files import read_object
from ckpt_probe.models.builtin import BUILTIN
from ckpt_probe.models.hugging_face import hugging_face_arguments, hugging_face_model
from ckpt_probe.models.image_models import OF_WEIGHTS, image_model_arguments, timm_model, torchvision_model
from ckpt_probe.models.sizing import Shapes, SizeNames, outline, sizes_from_tensors
from ckpt_probe.plugins import is_function_name, load_function, registered

ENTRY_POINTS = "ckpt_probe.models"
FRAMEWORKS = {"timm": timm_model, "torchvision": torchvision_model, "hf": hugging_face_model}
"""Functions that build `timm:NAME`, `torchvision:NAME` and `hf:DIR`."""

MOVED = {
    "modular_mlp": "sample_configs/grokking/modular.py:modular_mlp",
    "two_source": "sample_configs/cma/two_source.py:two_source",
}
"""Builtin models of earlier versions, and the functions of the studies that replace them."""

CLASSES = ("classes", "num_classes")
"""Accepted names of a user function's parameter for the number of classes."""


DRAWN = frozenset({torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_})
"""Methods that frameworks call to fill a tensor, besides the functions of torch.nn.init."""

TIMM_SHOWN = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "label_names", "fixed_input_size")
"""Entries of timm's configuration on images and classes; the origin of weights is left out."""

ITEM = 4
"""Bytes of a number of a model."""
OBJECTS = 16
"""Entries that are counted for a parameter with its share of a module."""
COUNTED = 2**20
"""Bytes that are counted before they are spent from the budget."""


def build_model(name: str, arguments: Mapping[str, Any] | None = None, *, tensors: Shapes | None = None) -> nn.Module:
    """Build a network by name.

    Args:
        name: Name of the model: builtin, `timm:NAME`, `torchvision:NAME`, `hf:DIR`, an entry point,
            `package.module:function` or `path/to/file.py:function`.
        arguments: Complete arguments of the model, as `model_arguments` returns them.
        tensors: Shapes of the checkpoint's tensors that will fill the model: parameters of frameworks are then not
            initialised, and the model may not be far larger. None to draw initial parameters.

    Raises:
        UsageError: For an unknown name, invalid arguments, or a function that raises or returns no module.
        DataError: If the model needs more memory than the budget of the checkpoint.
    """
    complete = dict(arguments or {})
    framework, reference = _of_framework(name)
    if framework is None:
        with _budgeted(name, tensors):
            return _called(name, _function(name), complete)
    if tensors is None:
        return framework(reference, complete)
    if framework is hugging_face_model:
        # Buffers are computed before they are counted, so the first model has no memory.
        with _budgeted(name, tensors):
            outline(lambda arguments: hugging_face_model(reference, arguments), complete)
    with _Unfilled(), _budgeted(name, tensors):
        return framework(reference, complete)


def model_arguments(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
    padding: int | None = None,
    tensors: Shapes | None = None,
) -> dict[str, Any]:
    """Return complete arguments, with which `build_model` builds the same network without any data or checkpoint.

    Args:
        name: The model, as `build_model` takes it.
        arguments: Arguments that the caller states; they take precedence.
        input_shape: The shape of one sample of the data.
        classes: The number of classes of the data.
        padding: Id of the token that pads the texts of the data.
        tensors: Shapes of the checkpoint's tensors, whose sizes take precedence over those of the data.

    Raises:
        UsageError: If there is no such model, or it does not take such arguments.
    """
    complete = dict(arguments or {})
    framework, reference = _of_framework(name)
    if framework is not None:
        with _budgeted(name, tensors):
            if framework is hugging_face_model:
                return hugging_face_arguments(reference, complete, classes=classes, padding=padding, tensors=tensors)
            library = name.partition(":")[0]
            return image_model_arguments(
                library, reference, complete, input_shape=input_shape, classes=classes, tensors=tensors
            )
    function = _function(name)
    parameters = _parameters(function)
    if input_shape is not None and "input_shape" in parameters:
        complete.setdefault("input_shape", list(input_shape))
    called = next((parameter for parameter in CLASSES if parameter in parameters), None)
    if called is None or classes is None or called in complete:
        return complete
    sized = {**complete, called: classes}
    if tensors is None:
        return sized
    with _budgeted(name, tensors):
        model = outline(lambda arguments: _called(name, function, arguments), sized)
    return {**sized, **sizes_from_tensors(model, tensors, SizeNames(called), classes)}


def assumed_arguments(name: str) -> Mapping[str, Any]:
    """Return arguments that a framework sets for models with its own weights, and that no file records."""
    kind, _, model = name.partition(":")
    return OF_WEIGHTS.get(model, {}) if kind == "torchvision" else {}


def functions_named(name: str) -> list[str]:
    """Return the user's functions that building a model would import; empty for builtin, registered, framework models.

    Args:
        name: Name of the model.
    """
    known = name in BUILTIN or not is_function_name(name) or name in registered(ENTRY_POINTS)
    return [] if known or _of_framework(name)[0] else [name]


def is_recorded_model(name: str, recorded: str | None) -> bool:
    """Return whether the model that the caller names is the one in a checkpoint's metadata.

    Args:
        name: Name of the model from the caller.
        recorded: Name of the model in the metadata. If an earlier version wrote a builtin model that is now a function
            of a study, the name of that function is accepted too.
    """
    return name == recorded or (recorded in MOVED and name.rpartition(":")[2] == recorded)


def arguments_taken(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of `values` that a user's function accepts as parameters; empty for all other models.

    Args:
        name: Name of the model.
        values: Possible arguments by name.
    """
    taken = _parameters(_function(name)) if functions_named(name) else set()
    return {key: value for key, value in values.items() if key in taken}


@contextmanager
def _budgeted(model: str, tensors: Shapes | None) -> Iterator[None]:
    """Limit the memory of models that are built within the context to the budget of a checkpoint of these tensors.

    A configuration or metadata may ask for any size; a parameter is counted before it is filled.

    Args:
        model: Name of the model, for the message.
        tensors: Shapes of the checkpoint's tensors; None for no limit.
    """
    if tensors is None:
        yield
        return
    budget, counted = Budget(f"model {model}", ITEM * sum(map(math.prod, tensors.values()))), 0

    def count(_module: nn.Module, _name: str, tensor: torch.Tensor | None) -> None:
        nonlocal counted
        if tensor is not None and not nn.parameter.is_lazy(tensor):
            counted += tensor.numel() * tensor.element_size() + ENTRY * OBJECTS
        if counted > COUNTED:
            budget.spend(counted)
            counted = 0

    parameters = modules.register_module_parameter_registration_hook(count)
    with parameters, modules.register_module_buffer_registration_hook(count):
        yield


class _Unfilled(TorchFunctionMode):
    """Skip the random initialisation of parameters within the `with` block, for models that a checkpoint fills.

    Buffers, and parameters that are computed from others, are initialised as usual.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the result of `func`, or the parameter unchanged if `func` would fill it."""
        named = kwargs or {}
        filled = args[0] if args else named.get("tensor")
        fills = func in DRAWN or getattr(func, "__module__", None) == "torch.nn.init"
        if fills and isinstance(filled, nn.Parameter):
            return filled
        return func(*args, **named)


def model_beside(path: Path) -> tuple[str, dict[str, Any]] | None:
    """Return name and arguments of the model in the config.json beside a checkpoint.

    Args:
        path: The checkpoint: a file, or a directory with a config.json.

    Returns:
        `hf:DIR` for a configuration of transformers, `timm:NAME` for one of timm, with arguments; else None.

    Raises:
        DataError: If the file is not a JSON object.
    """
    directory = path if path.is_dir() else path.parent
    file = directory / "config.json"
    if not file.is_file():
        return None
    config = read_object(file, "a model's configuration")
    if "architectures" in config or "model_type" in config:
        return f"hf:{directory}", {}
    if isinstance(config.get("architecture"), str):
        return f"timm:{config['architecture']}", _timm_arguments(config)
    return None


def class_names(model: nn.Module) -> tuple[str, ...] | None:
    """Return the class names in a model's configuration (`id2label`, timm's `label_names`), in order.

    Returns:
        The names, None if there are no names or only the placeholders LABEL_0, LABEL_1, … of transformers.
    """
    table = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(table, dict):
        names = [table[number] for number in sorted(table)]
    else:
        cfg = getattr(model, "pretrained_cfg", None)
        stated = cfg.get("label_names") if isinstance(cfg, dict) else None
        names = list(stated) if isinstance(stated, list | tuple) else []
    if not names or names == [f"LABEL_{number}" for number in range(len(names))]:
        return None
    return tuple(str(name) for name in names)


def _of_framework(name: str) -> tuple[Callable[[str, Mapping[str, Any]], nn.Module] | None, str]:
    kind, _, reference = name.partition(":")
    return (FRAMEWORKS.get(kind) if reference else None), reference


def _function(name: str) -> Callable[..., Any]:
    if name in BUILTIN:
        return BUILTIN[name]
    if name in (others := registered(ENTRY_POINTS)):
        return others[name]
    if is_function_name(name):
        return load_function(name)
    if name in MOVED:
        raise UsageError(
            f"model {name}: moved to the studies: name it with `model={MOVED[name]!r}`, a file of the repository "
            "(checkpoints that record the earlier name contain its arguments)"
        )
    frameworks = ["timm:NAME", "torchvision:NAME", "hf:DIR"]
    known = ", ".join([*BUILTIN, *others, *frameworks, "package.module:function", "path/to/file.py:function"])
    raise UsageError(f"no model called {name!r}; there are: {known}")


def _called(name: str, function: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    try:
        model = function(**arguments)
    except CkptProbeError:
        raise
    except (TypeError, ValueError) as error:
        raise UsageError(f"model {name}: cannot be built with arguments {arguments}: {error}") from error
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


def _timm_arguments(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("pretrained_cfg")
    stated = {**(inner if isinstance(inner, dict) else config)}
    stated |= {name: config[name] for name in ("num_classes", "label_names") if name in config}
    if "labels" in stated:
        stated.setdefault("label_names", stated["labels"])
    arguments = dict(config["model_args"]) if isinstance(config.get("model_args"), dict) else {}
    if isinstance(stated.get("num_classes"), int):
        arguments.setdefault("num_classes", stated["num_classes"])
    if isinstance(config.get("global_pool"), str):
        arguments.setdefault("global_pool", config["global_pool"])
    overlay = {name: stated[name] for name in TIMM_SHOWN if stated.get(name) is not None}
    return {**arguments, "pretrained_cfg_overlay": overlay} if overlay else arguments
