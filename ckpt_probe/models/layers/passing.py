"""What every module of a model did in one forward pass: how often it ran, in which order, what shape it gave."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ckpt_probe.models.calling import Batch, first_tensor, forward_once


@dataclass
class Seen:
    """One module in a forward pass; `shape`: of the tensor it gave, None where it gave none.

    started, finished: places in the order of all starts and ends, of its last run. given: the shape of its first input.
    fed_by: modules whose output, the very tensor, that input is.
    """

    name: str
    module: nn.Module
    calls: int = 0
    started: int = 0
    finished: int = 0
    given: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    fed_by: frozenset[str] = frozenset()


def watched(model: nn.Module, inputs: Batch) -> dict[str, Seen]:
    """Every module below `model` that ran for a batch of inputs, by name. Raises DataError as `forward_once`."""
    found = {name: Seen(name, module) for name, module in model.named_modules() if name}
    clock, outputs, hooks = iter(range(2**62)), {}, []
    for seen in found.values():
        before, after = _starting(seen, clock, outputs), _ending(seen, clock, outputs)
        hooks.append(seen.module.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(seen.module.register_forward_hook(after))
    try:
        forward_once(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: seen for name, seen in found.items() if seen.calls}


def activation_in(output: Any) -> Tensor | None:
    """The activation in what a module gave: a tensor, or the first one of a sequence or a mapping; None without."""
    if isinstance(output, Tensor):
        return output
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(parts, Sequence):
        return None
    return next((part for part in parts if isinstance(part, Tensor)), None)


def _starting(seen: Seen, clock: Any, outputs: Mapping[str, Any]) -> Callable[..., None]:
    def note(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = first_tensor(arguments, named)
        seen.started, seen.given = next(clock), None if given is None else tuple(given.shape)
        seen.fed_by = frozenset(name for name, output in outputs.items() if given is not None and output() is given)

    return note


def _ending(seen: Seen, clock: Any, outputs: dict[str, Any]) -> Callable[..., None]:
    def note(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        activation = activation_in(output)
        seen.calls += 1
        seen.finished, seen.shape = next(clock), None if activation is None else tuple(activation.shape)
        if activation is not None:
            outputs[seen.name] = weakref.ref(activation)

    return note
