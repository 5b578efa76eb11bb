"""Choose a device, call a model on a batch, record calls of its layers, and extract the logits from its output."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, overload

import torch
from torch import Tensor, nn

from ckpt_probe.errors import CkptProbeError, DataError, UsageError, last_line

Batch = Tensor | Mapping[str, Tensor]
"""Inputs of n samples: a tensor of shape (n, …), or several by the names of the model's arguments."""

Call = tuple[Tensor, Tensor]
"""Input and output of a layer."""


def choose_device(name: str) -> torch.device:
    """Return a device by name.

    Args:
        name: `auto` (CUDA if available, else MPS, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        UsageError: For another name, or a device that is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"`device={name!r}`: expected auto, cpu, cuda[:n] or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"`device={name!r}`: there are {count} CUDA devices here; try `device='auto'`")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"`device={name!r}`: not available on this machine; try `device='auto'`")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise UsageError(f"`device={name!r}`: expected auto, cpu, cuda[:n] or mps")
    return device


@overload
def on_device(inputs: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor: ...
@overload
def on_device(inputs: Batch, device: torch.device, dtype: torch.dtype | None = None) -> Batch: ...
def on_device(inputs: Batch, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
    """Copy inputs to a device.

    Copies to CUDA are asynchronous; an asynchronous copy to MPS may read memory that was freed meanwhile.

    Args:
        inputs: A tensor, or several by name.
        device: The device.
        dtype: Type of floating-point numbers; unchanged if None.
    """
    if not isinstance(inputs, Tensor):
        return {name: on_device(tensor, device, dtype) for name, tensor in inputs.items()}
    kind = dtype if dtype is not None and inputs.is_floating_point() else inputs.dtype
    return inputs.to(device=device, dtype=kind, non_blocking=device.type == "cuda")


def cast_floats(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast floating-point tensors of a model in place, and return it; `Module.to` also makes complex ones real."""
    return model._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def as_taken_by(model: nn.Module, inputs: Batch) -> Batch:
    """Copy inputs to the device of a model, and floating-point numbers to its dtype."""
    tensors = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    first = next(tensors, None)
    return inputs if first is None else on_device(inputs, first.device, first.dtype)


def call(model: nn.Module, inputs: Batch) -> Any:
    """Call the model on a copy of a batch: a tensor is its first argument, a mapping its keyword arguments."""
    # Hooks that are set after torch.compile run only in the wrapped module, not in the compiled code.
    plain = getattr(model, "_orig_mod", model)
    # A model may change its inputs in place, which may be the data themselves.
    if isinstance(inputs, Mapping):
        return plain(**{name: tensor.clone() for name, tensor in inputs.items()})
    return plain(inputs.clone())


def samples_in(inputs: Batch) -> int:
    """Return the number of samples of a batch.

    Raises:
        DataError: If the tensors have different numbers of samples.
    """
    if isinstance(inputs, Tensor):
        return len(inputs)
    lengths = {name: len(tensor) for name, tensor in inputs.items()}
    if len(set(lengths.values())) != 1:
        raise DataError(f"the tensors of a batch hold different numbers of samples: {lengths}")
    return next(iter(lengths.values()))


def part_of(inputs: Batch, which: slice) -> Batch:
    """Return some samples of a batch."""
    return changed(inputs, lambda tensor: tensor[which])


def changed(inputs: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return a batch of tensors that a function makes of each tensor of a batch."""
    return change(inputs) if isinstance(inputs, Tensor) else {name: change(part) for name, part in inputs.items()}


def described(inputs: Batch) -> str:
    """Return shape and dtype of one sample for a message: "(1, 8, 8) of float32"."""
    if isinstance(inputs, Tensor):
        return f"{tuple(inputs.shape[1:])} of {str(inputs.dtype).removeprefix('torch.')}"
    return ", ".join(f"{name} {described(tensor)}" for name, tensor in inputs.items())


def run_once(model: nn.Module, inputs: Batch) -> Tensor:
    """Return the logits of a batch, shape (n, C) for most models; see `forward_once`.

    Args:
        model: The model.
        inputs: Inputs of the batch.

    Raises:
        DataError: If the model does not accept the inputs, or returns no logits.
    """
    return logits_of(forward_once(model, inputs))


def forward_once(model: nn.Module, inputs: Batch) -> Any:
    """Call the model in evaluation mode without gradients, then restore its mode.

    Args:
        model: The model.
        inputs: Inputs of the batch.

    Raises:
        DataError: If the model does not accept the inputs.
    """
    try:
        with torch.no_grad(), evaluating(model):
            return call(model, inputs)
    except CkptProbeError:
        raise
    except Exception as error:  # the code of the model may raise anything
        message = f"the model does not take inputs of shape {described(inputs)} ({last_line(error)})"
        raise DataError(f"{message}{precision_hint(error)}") from error


def precision_hint(error: Exception) -> str:
    """Return advice for a forward pass that fails because the model makes numbers of another precision; else ""."""
    if isinstance(error, RuntimeError) and "dtype" in str(error) and re.search("[Dd]ouble|[Ff]loat64", str(error)):
        return "; if the model computes in float64 by itself, run all of it so: `dtype='float64'`"
    return ""


def unsteadiness(model: nn.Module, inputs: Batch) -> str | None:
    """Return a sentence if a model's first result for a sample is not a function of that sample, else None.

    Args:
        model: The model.
        inputs: Inputs of two samples or more.
    """
    first, again = run_once(model, inputs), run_once(model, inputs)
    if not _are_close(first, again):
        return (
            "two runs of the model on the same samples differ: it draws random numbers in evaluation mode too (dropout "
            "that ignores the mode?), so features and logits are one draw"
        )
    try:
        alone = run_once(model, part_of(inputs, slice(0, 1)))
    except DataError:
        # The model takes several samples only, as batch norm does without running statistics.
        repeated = changed(inputs, lambda tensor: tensor[:1].expand_as(tensor))
        alone = run_once(model, repeated)[:1]
    if len(first) != samples_in(inputs) or _are_close(first[:1], alone):
        return None
    return (
        "the model's output for a sample depends on the other samples of its batch (batch norm without running "
        "statistics?), so features and logits depend on the batch size and on the order of the samples"
    )


def _are_close(first: Tensor, second: Tensor) -> bool:
    """Return whether two results agree up to the rounding of batches of different sizes."""
    if first.shape != second.shape:
        return False
    first, second = first.cpu().double(), second.cpu().double()
    largest = float(first.abs().nan_to_num(0, 0, 0).max()) if first.numel() else 0.0
    return torch.allclose(first, second, rtol=0, atol=0.01 * largest, equal_nan=True)


def unknown_index(error: IndexError) -> str:
    """Return the message for a forward pass that fails because samples contain an index outside the model's range."""
    return f"the model does not take some of the samples: they hold an index out of its range (IndexError: {error})"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode within the `with` block, then restore the mode of each module."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def tapping(
    layers: Mapping[str, nn.Module], *, copied: bool = False, is_enabled: Callable[[], bool] | None = None
) -> Iterator[dict[str, list[Call]]]:
    """Record the calls of some layers within the `with` block.

    Args:
        layers: The layers by name.
        copied: Whether to copy the outputs, which the model may change in place.
        is_enabled: Returns whether to record the current call; None to record all.

    Yields:
        For each name a list of the first tensor and the output of every call.
    """
    calls: dict[str, list[Call]] = {name: [] for name in layers}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            record = _recorder(calls[name], copied, is_enabled)
            hooks.enter_context(layer.register_forward_hook(record, with_kwargs=True))
        yield calls


class _ReachedError(Exception):
    """Raised when a layer is about to run."""


def rows_entering(model: nn.Module, layer: str, inputs: Batch) -> Tensor:
    """Return the rows that enter a layer in its first call, shape (m, D); the forward pass ends there.

    Args:
        model: The model.
        layer: Name of the layer.
        inputs: Inputs of the batch.

    Raises:
        DataError: If the layer does not run.
    """
    received: list[Tensor | None] = []

    def reach(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        received.append(first_tensor(arguments, named))
        raise _ReachedError

    with model.get_submodule(layer).register_forward_pre_hook(reach, with_kwargs=True), suppress(_ReachedError):
        call(model, inputs)
    if not received or received[0] is None:
        raise DataError(f"classifier {layer} did not run in a forward pass, or received no tensor")
    return received[0].reshape(-1, received[0].shape[-1])


def first_tensor(arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
    """Return the first tensor among the arguments of a module."""
    return next((value for value in (*arguments, *named.values()) if isinstance(value, Tensor)), None)


def logits_of(output: Any) -> Tensor:
    """Return the logits in a model's output: a tensor, `.logits`, `["logits"]`, or the first tensor of a tuple.

    Raises:
        DataError: If the output contains no tensor.
    """
    return results_of(output)[0]


def results_of(output: Any) -> list[Tensor]:
    """Return the tensors in a model's output that may be logits, the likeliest first.

    Args:
        output: A tensor, an output with `.logits` or `["logits"]`, which is then the only candidate, or a tuple or
            mapping of tensors.

    Raises:
        DataError: If the output contains no tensor.
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(getattr(output, "logits", None), Tensor):
        return [output.logits]
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return [output["logits"]]
    parts = list(output.values()) if isinstance(output, Mapping) else output
    tensors = [part for part in parts if isinstance(part, Tensor)] if isinstance(parts, tuple | list) else []
    if not tensors:
        raise DataError(f"the model returned {type(output).__name__}, which contains no logits")
    return tensors


def _recorder(calls: list[Call], copied: bool, is_enabled: Callable[[], bool] | None) -> Callable[..., None]:
    def record(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if is_enabled is not None and not is_enabled():
            return
        received = first_tensor(arguments, named)
        if received is not None and isinstance(output, Tensor):
            calls.append((received, output.clone() if copied else output))

    return record
