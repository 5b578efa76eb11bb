"""Observation of every module of a model in one forward pass: number of calls, order, shapes."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ckpt_probe.models.calling import Batch, first_tensor, forward_once


@dataclass
class ModuleRun:
    """One module in a forward pass.

    Args:
        name: Name of the module.
        module: The module.
        calls: Number of its calls.
        started: Position of the start of its last call in the order of all starts and ends.
        finished: Position of the end of its last call in that order.
        input_shape: Shape of its first input, None without a tensor.
        shape: Shape of its output, None without a tensor.
        fed_by: Names of modules whose output is this input, the same tensor.
    """

    name: str
    module: nn.Module
    calls: int = 0
    started: int = 0
    finished: int = 0
    input_shape: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    fed_by: frozenset[str] = frozenset()


def observe_modules(model: nn.Module, inputs: Batch) -> dict[str, ModuleRun]:
    """Run a model on a batch and observe its modules.

    Returns:
        Each submodule that ran, by name.

    Raises:
        DataError: If the model does not accept the inputs.
    """
    runs = {name: ModuleRun(name, module) for name, module in model.named_modules() if name}
    clock, outputs, hooks = iter(range(2**62)), {}, []
    for run in runs.values():
        before, after = _starting(run, clock, outputs), _ending(run, clock, outputs)
        hooks.append(run.module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(run.module.register_forward_hook(after))
    try:
        forward_once(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: run for name, run in runs.items() if run.calls}


def activation_in(output: Any) -> Tensor | None:
    """Return the activation in a module's output: a tensor, the first one of a sequence or mapping, or None."""
    if isinstance(output, Tensor):
        return output
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(parts, Sequence):
        return None
    return next((part for part in parts if isinstance(part, Tensor)), None)


def _starting(run: ModuleRun, clock: Any, outputs: Mapping[str, Any]) -> Callable[..., None]:
    def note(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        received = first_tensor(arguments, named)
        run.started, run.input_shape = next(clock), None if received is None else tuple(received.shape)
        run.fed_by = frozenset(
            name for name, output in outputs.items() if received is not None and output() is received
        )

    return note


def _ending(run: ModuleRun, clock: Any, outputs: dict[str, Any]) -> Callable[..., None]:
    def note(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        activation = activation_in(output)
        run.calls += 1
        run.finished, run.shape = next(clock), None if activation is None else tuple(activation.shape)
        if activation is not None:
            outputs[run.name] = weakref.ref(activation)

    return note
