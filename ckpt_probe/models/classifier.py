"""The last linear layer of a model, found by running it: the one whose output is the model's output."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.errors import DataError, UsageError


def find_classifier(model: nn.Module, inputs: Tensor, override: str | None = None) -> str:
    """The name of the `nn.Linear` whose output is the model's output on a batch of inputs (n, …).

    `override` names the layer instead, and is checked. Raises DataError where the model does not take the inputs, where
    no linear layer's output is the model's output, or where several are, listing all candidates; UsageError where
    `override` names no linear layer.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if override is not None:
        if override not in linears:
            raise UsageError(f"--classifier {override}: no linear layer has that name; there are: {_listed(linears)}")
        run_once(model, inputs)
        return override
    outputs, result = _run(model, linears, inputs)
    found = [name for name, seen in outputs.items() if any(_same(output, result) for output in seen)]
    if len(found) == 1:
        return found[0]
    if not linears:
        raise DataError("no classifier found: the model contains no torch.nn.Linear")
    if found:
        raise DataError(f"several layers yield the model's output: {', '.join(found)}; pick one with --classifier NAME")
    shapes = {name: f"{name} {tuple(seen[-1].shape) if seen else '(not run)'}" for name, seen in outputs.items()}
    raise DataError(
        f"no linear layer yields the model's output {tuple(result.shape)}; candidates and their outputs: "
        f"{_listed(shapes, shapes.values())}; pick one with --classifier NAME"
    )


def run_once(model: nn.Module, inputs: Tensor) -> Tensor:
    """The logits (n, C) of a batch in evaluation mode, without gradient; the model is left as it was.

    Raises DataError where the model does not take such inputs, or returns no logits.
    """
    try:
        with torch.no_grad(), evaluating(model):
            return logits_of(model(inputs))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        kind = f"{tuple(inputs.shape[1:])} of {str(inputs.dtype).removeprefix('torch.')}"
        first_line = str(error).strip().partition("\n")[0]
        why = f"{type(error).__name__}: {first_line}"
        raise DataError(f"the model does not take inputs of shape {kind} ({why})") from error


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


def unknown_index(error: IndexError) -> str:
    """A sentence for what a forward pass raises where samples or labels hold an index that the model does not have."""
    return f"the model does not take some of the samples: they hold an index out of its range (IndexError: {error})"


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, `.logits`, `["logits"]`, or the first of a tuple.

    Raises DataError where there are none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, dict) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    if isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        return output[0]
    raise DataError(f"the model returned {type(output).__name__}, which contains no logits")


def _run(model: nn.Module, linears: dict[str, nn.Linear], inputs: Tensor) -> tuple[dict[str, list[Tensor]], Tensor]:
    outputs: dict[str, list[Tensor]] = {name: [] for name in linears}
    hooks = [module.register_forward_hook(_recorder(outputs[name])) for name, module in linears.items()]
    try:
        result = run_once(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, result


def _recorder(seen: list[Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    def record(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        seen.append(output)

    return record


def _same(output: Tensor, result: Tensor) -> bool:
    # A view of the layer's output, such as a squeeze, shares its memory and its number of elements.
    return output is result or (output.data_ptr() == result.data_ptr() and output.numel() == result.numel() > 0)


def _listed(names: dict[str, Any], shown: Any = None) -> str:
    texts = list(shown if shown is not None else names)
    return ", ".join(texts[-8:]) + (f" and {len(texts) - 8} before them" if len(texts) > 8 else "") or "none"
