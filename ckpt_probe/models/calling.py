"""How a batch is handed to a model, and where the logits are in what it returns."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, last_line

Batch = Tensor | Mapping[str, Tensor]
"""Inputs (n, …) of n samples: one tensor, or several by the names under which the model takes them."""

Call = tuple[Tensor, Tensor]
"""What a layer was given, and what it gave."""


def call(model: nn.Module, inputs: Batch) -> Any:
    """What the model returns for a batch: a tensor is its first argument, a mapping its named ones."""
    # Hooks that are set after torch.compile do not run in the compiled code; they do in the module that it wraps.
    plain = getattr(model, "_orig_mod", model)
    return plain(**inputs) if isinstance(inputs, Mapping) else plain(inputs)


def samples_in(inputs: Batch) -> int:
    """The number of samples of a batch. Raises DataError where its tensors disagree on it."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    lengths = {name: len(tensor) for name, tensor in inputs.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"the tensors of a batch hold different numbers of samples: {lengths}")
    return next(iter(lengths.values()))


def part_of(inputs: Batch, which: slice) -> Batch:
    """Some samples of a batch."""
    if isinstance(inputs, Tensor):
        return inputs[which]
    return {name: tensor[which] for name, tensor in inputs.items()}


def described(inputs: Batch) -> str:
    """Shape and kind of one sample, for a message: "(1, 8, 8) of float32"."""
    if isinstance(inputs, Tensor):
        return f"{tuple(inputs.shape[1:])} of {str(inputs.dtype).removeprefix('torch.')}"
    return ", ".join(f"{name} {described(tensor)}" for name, tensor in inputs.items())


def run_once(model: nn.Module, inputs: Batch) -> Tensor:
    """The logits of a batch, (n, C) for most models, as `forward_once` computes them.

    Raises DataError where the model does not take such inputs, or returns no logits.
    """
    return logits_of(forward_once(model, inputs))


def forward_once(model: nn.Module, inputs: Batch) -> Any:
    """What the model returns for a batch in evaluation mode, without gradient; the model is left as it was.

    Raises DataError where the model does not take such inputs.
    """
    try:
        with torch.no_grad(), evaluating(model):
            return call(model, inputs)
    except (RuntimeError, IndexError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise DataError(f"the model does not take inputs of shape {described(inputs)} ({last_line(error)})") from error


def unknown_index(error: IndexError) -> str:
    """A sentence for what a forward pass raises where samples or labels hold an index that the model does not have."""
    return f"the model does not take some of the samples: they hold an index out of its range (IndexError: {error})"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A model in evaluation mode; on leaving, also after an error, each of its modules is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def tapping(
    layers: Mapping[str, nn.Module], *, copied: bool = False, heard: Callable[[], bool] = lambda: True
) -> Iterator[dict[str, list[Call]]]:
    """While entered, the calls of some layers by the names given: the first tensor each takes, and what it gives.

    copied: whether what it gives is kept as a copy, since what follows may change it in place. heard: whether a call
    is kept.
    """
    calls: dict[str, list[Call]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_hook(_recorder(calls[name], copied, heard), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


class _Reached(Exception):
    """A layer is about to run."""


def stopped_at(model: nn.Module, layer: str, inputs: Batch) -> Tensor:
    """What a layer is given when a batch reaches it for the first time; nothing after it is computed.

    Raises DataError where the layer does not run.
    """
    given: list[Tensor | None] = []

    def reach(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given.append(first_tensor(arguments, named))
        raise _Reached

    hook = model.get_submodule(layer).register_forward_pre_hook(reach, with_kwargs=True)
    try:
        call(model, inputs)
    except _Reached:
        pass
    finally:
        hook.remove()
    if not given or given[0] is None:
        raise DataError(f"classifier {layer} did not run in a forward pass, or was given no tensor")
    return given[0]


def first_tensor(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """The first tensor that a module was called with."""
    return next((value for value in (*arguments, *named.values()) if isinstance(value, Tensor)), None)


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, `.logits`, `["logits"]`, or the first of a tuple.

    Raises DataError where there are none.
    """
    return results_of(output)[0]


def results_of(output: Any) -> list[Tensor]:
    """The tensors in what a model returned that may be logits, the likeliest first.

    A tensor, `.logits` or `["logits"]` is the only one; else those of a tuple, or of a mapping, in their order.
    Raises DataError where there are none.
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(getattr(output, "logits", None), Tensor):
        return [output.logits]
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return [output["logits"]]
    parts = list(output.values()) if isinstance(output, Mapping) else output
    found = [part for part in parts if isinstance(part, Tensor)] if isinstance(parts, tuple | list) else []
    if not found:
        raise DataError(f"the model returned {type(output).__name__}, which contains no logits")
    return found


def _recorder(calls: list[Call], copied: bool, heard: Callable[[], bool]) -> Callable[..., None]:
    def record(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if not heard():
            return
        given = first_tensor(arguments, named)
        if given is not None and isinstance(output, Tensor):
            calls.append((given, output.clone() if copied else output))

    return record
