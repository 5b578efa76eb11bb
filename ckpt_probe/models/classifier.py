"""Search for a model's head by running it: the layers whose output is, or determines, the model's output."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models.calling import Batch, Call, evaluating, forward_once, results_of, samples_in, tapping
from ckpt_probe.models.head import CONVOLUTIONS, Head, Kind, Part, affine_map, as_rows, only_call, rows_by_position
from ckpt_probe.models.pooling import HEADLESS, STATE, Backbone, backbone_of
from ckpt_probe.models.relation import relation_to

SHOWN = 8
LARGEST_PROBED = 16_384
"""Maximum number of features of a layer whose weights are computed from its outputs for unit vectors."""

Calls = dict[str, list[Call]]
"""Calls of some layers, by name."""


def find_head(model: nn.Module, inputs: Batch, override: str | None = None) -> Head:
    """Find the linear map whose output is the model's output on a batch of inputs (n, …).

    If the model returns the output of a layer, that layer is the head. Otherwise the model runs again with random
    numbers in place of the outputs of layers as wide as its own output, which shows the layers that determine it, and
    how: log-softmax, softmax or sigmoid, a multiple, a mean over positions or of several heads, or the output at one
    position of each sample.

    Args:
        model: The model.
        inputs: Inputs of a batch.
        override: Name of the layer, or names joined by "+", instead of a search.

    Raises:
        DataError: If the model does not accept the inputs, or no layer or several layers yield its output; the message
            lists all candidates.
        UsageError: If `override` names no linear layer.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError("a TorchScript module, whose layers cannot be observed; pass the module that it was made from")
    linears = _linear_layers(model)
    if override is not None:
        return _named(model, inputs, override.split("+"), linears)
    return _searched(model, inputs, linears, *_run(model, linears, inputs))


def find_rows(
    model: nn.Module, inputs: Batch, named: str | None, pooling: str | None, *, tapped: bool = False
) -> Head | Backbone:
    """Return a model's head, or its backbone if it has no head; see `is_backbone`.

    Args:
        model: Model.
        inputs: Inputs of two samples.
        named: Name of the last linear layer, or "none" for a model without a head; None to find it.
        pooling: Pooling of the tokens of a model without a head, and of other layers.
        tapped: Whether other layers are stored too.

    Raises:
        UsageError: If pooling is set for a model with a head and no other layer is stored; also as in `find_head` and
            `backbone_of`.
    """
    linears = _linear_layers(model)
    calls, output = _run(model, linears, inputs) if named is None else ({}, None)
    if named == HEADLESS or is_backbone(output):
        return backbone_of(model, inputs, pooling)
    if pooling is not None and not tapped:
        raise UsageError(f"`pooling={pooling!r}`: the model has a head, and its rows are the classifier's inputs")
    if named is not None or isinstance(model, torch.jit.ScriptModule):
        return find_head(model, inputs, named)
    return _searched(model, inputs, linears, calls, output)


def is_backbone(output: Any) -> bool:
    """Return whether the output of a model, like those of transformers without a head, is only its last hidden state.

    A feature pooled from it is accepted beside it, because no classifier follows.
    """
    if not isinstance(output, Mapping) or STATE not in output:
        return False
    tensors = [name for name, value in output.items() if isinstance(value, Tensor)]
    return all(name == "pooler_output" or name.endswith(STATE) for name in tensors)


def _linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, *CONVOLUTIONS))]


def _searched(model: nn.Module, inputs: Batch, linears: Sequence[str], calls: Calls, output: Any) -> Head:
    """Return the head from the calls of all linear layers and the output of one pass; see `find_head`."""
    results = results_of(output)
    returned = _returned(model, calls, results, samples_in(inputs))
    if returned is not None:
        return returned
    for names in _groups(model, inputs, linears, results):
        if head := _related(model, inputs, names, results):
            return head
    raise _not_found(model, calls, results[0])


def _returned(model: nn.Module, calls: Calls, results: Sequence[Tensor], samples: int) -> Head | None:
    """Return the head if the model returns the output of a layer or a view of it, else None."""
    for number, result in enumerate(results):
        same = [name for name, seen in calls.items() if any(_same(output, result) for _, output in seen)]
        if len(same) > 1:
            message = f"several layers yield the model's output: {', '.join(same)}"
            raise DataError(f"{message}; pick one with `classifier=`")
        if len(same) == 1 and len(calls[same[0]]) == 1:
            part, positions = _part(model, same[0], calls[same[0]][0], samples)
            if part is not None:
                part = replace(part, positions="one" if positions == 1 else "every")
                return Head((part,), result=number, why=_why("its output is {what}", number, len(results)))
    return None


def _part(model: nn.Module, name: str, call: Call, samples: int) -> tuple[Part | None, int]:
    """Return a layer as a part of a head, or None if it is not linear, and its number of rows per sample."""
    layer = model.get_submodule(name)
    with evaluating(layer):
        kind = _kind_of(layer, *call, samples)
    if kind is None:
        return None, 0
    features, _ = rows_by_position(layer, *call, samples)
    return Part(name, features.shape[-1], kind), features.shape[1]


def _kind_of(layer: nn.Module, received: Tensor, output: Tensor, samples: int) -> Kind | None:
    """Return the kind of linear map of a layer, None if it is not linear.

    The output of a layer with weights must agree with them.

    Args:
        layer: The layer.
        received: Its input, shape (n, …).
        output: Its output, shape (n, …).
        samples: Number of samples n.
    """
    if received.ndim < 2 or output.ndim < 2 or len(received) != samples or len(output) != samples:
        return None
    if not (received.is_floating_point() and output.is_floating_point()):
        return None
    if isinstance(layer, CONVOLUTIONS):
        fits = _sees_once(layer, received) and _agrees(layer, "convolution", received, output)
        return "convolution" if fits else None
    if received.shape[:-1] != output.shape[:-1]:
        return None
    weight = getattr(layer, "weight", None)
    shaped = isinstance(weight, Tensor) and weight.shape == (output.shape[-1], received.shape[-1])
    if shaped and _agrees(layer, "linear", received, output):
        return "linear"
    if received.shape[-1] > LARGEST_PROBED:
        return None
    return next((kind for kind in ("affine", "cosine") if _agrees(layer, kind, received, output)), None)


def _sees_once(layer: nn.Module, received: Tensor) -> bool:
    """Return whether a convolution has one output per position, or one for its complete input."""
    if not isinstance(layer, CONVOLUTIONS) or layer.groups != 1 or received.ndim != 2 + len(layer.kernel_size):
        return False
    if any(padding != 0 for padding in layer.padding):
        return False
    at_each = max(layer.kernel_size) == max(layer.stride) == 1
    return at_each or tuple(received.shape[2:]) == layer.kernel_size


def _agrees(layer: nn.Module, kind: Kind, received: Tensor, output: Tensor) -> bool:
    """Return whether a layer's output agrees with its weights up to rounding."""
    features, wanted = rows_by_position(layer, received.detach(), output.detach(), len(received))
    try:
        with torch.no_grad():
            weights, bias = affine_map(layer, kind, features.shape[-1])
    except Exception:  # the layer refuses unit vectors
        return False
    if weights.shape != (wanted.shape[-1], features.shape[-1]):
        return False
    predicted = F.linear(as_rows(kind, features).float(), weights.float(), None if bias is None else bias.float())
    finite = wanted.isfinite()
    if not bool(finite.all()) and kind in ("affine", "cosine"):
        return False
    # In a diverged model only finite outputs can be compared.
    predicted, wanted = predicted[finite], wanted[finite].float()
    tolerance = 0.05 if torch.finfo(output.dtype).bits < 32 else 1e-3
    return not len(wanted) or bool(((predicted - wanted).abs() <= tolerance * wanted.abs().max()).all())


def _groups(model: nn.Module, inputs: Batch, linears: Sequence[str], results: Sequence[Tensor]) -> list[list[str]]:
    """Return groups of layers to search together: first all leaves with weights, then each larger module by itself.

    Larger modules count if their output has the width of a result; the smallest come first. The model is excluded.
    """
    modules = dict(model.named_modules())
    sizes = {name: sum(1 for _ in module.modules()) for name, module in modules.items()}
    leaves = [
        name for name, module in modules.items() if name in linears or (sizes[name] == 1 and _has_weights(module))
    ]
    larger = [name for name, size in sizes.items() if name and size > 1 and name not in linears]
    widths = {result.shape[-1] for result in results if result.ndim > 1}
    calls, _ = _run(model, larger, inputs)
    wide = [name for name in larger if calls[name] and calls[name][-1][1].shape[-1:].numel() in widths]
    return [leaves, *([name] for name in sorted(wide, key=lambda name: sizes[name]))]


def _has_weights(module: nn.Module) -> bool:
    return any(tensor.ndim > 1 for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def _related(model: nn.Module, inputs: Batch, names: Sequence[str], results: Sequence[Tensor]) -> Head | None:
    """Return the head of layers that determine a result and are linear maps of their inputs, else None."""
    for number, result in enumerate(results):
        relation = relation_to(model, inputs, names, number, result)
        if relation is None:
            continue
        calls, _ = _run(model, relation.layers, inputs, copied=True)
        samples, once = samples_in(inputs), {name: only_call(name, seen) for name, seen in calls.items()}
        linear = [_part(model, part.layer, once[part.layer], samples)[0] for part in relation.parts]
        pairs = zip(relation.parts, linear, strict=True)
        parts = tuple(replace(part, width=layer.width, kind=layer.kind) for part, layer in pairs if layer is not None)
        if len(parts) == len(linear):
            why = _why(relation.why, number, len(results))
            return replace(relation, parts=parts, result=number, settled=False, why=why)
    return None


def _named(model: nn.Module, inputs: Batch, names: Sequence[str], linears: Sequence[str]) -> Head:
    modules, samples = dict(model.named_modules()), samples_in(inputs)
    for name in names:
        if name not in modules:
            raise UsageError(f"`classifier={name!r}`: no linear layer has that name; there are: {_last(linears)}")
    calls, output = _run(model, names, inputs)
    copies, _ = _run(model, names, inputs, copied=True)
    parts: dict[Part, int] = {}
    for name in names:
        part, positions = _part(model, name, only_call(name, copies[name]), samples)
        if part is None:
            kind = type(modules[name]).__name__
            raise UsageError(f"`classifier={name!r}`: {kind} is no linear layer; there are: {_last(linears)}")
        parts[part] = positions
    results = results_of(output)
    if len(names) == 1 and (head := _returned(model, calls, results, samples)):
        return head
    if head := _related(model, inputs, names, results):
        return head
    for part, positions in parts.items():
        if positions != 1:
            raise DataError(
                f"classifier {part.layer} takes {tuple(calls[part.layer][0][0].shape)} for {samples} samples, and how "
                "the model's output comes from its own is not known; one row of features per sample is needed"
            )
    return Head(tuple(parts), why="named by the caller; what the model returns comes from its output in another way")


def _not_found(model: nn.Module, calls: Calls, result: Tensor) -> DataError:
    if not calls:
        return DataError("no classifier found: the model contains no torch.nn.Linear")
    shapes = {name: tuple(seen[-1][1].shape) if seen else "(not run)" for name, seen in calls.items()}
    listed = _last([f"{name} {shape}" for name, shape in shapes.items()])
    width = result.shape[1:].numel()
    wide = [name for name, seen in calls.items() if seen and seen[-1][1].shape[1:].numel() == width]
    advice = (
        f"likeliest {wide[-1]}, which gives {width} numbers a sample as the model does: use `classifier={wide[-1]!r}`"
        if wide
        else "pick one with `classifier=`"
    )
    return DataError(
        f"no linear layer yields the model's output {tuple(result.shape)}; candidates and their outputs: {listed}; "
        f"{advice}"
    )


def _run(model: nn.Module, names: Sequence[str], inputs: Batch, *, copied: bool = False) -> tuple[Calls, Any]:
    with tapping({name: model.get_submodule(name) for name in names}, copied=copied) as calls:
        output = forward_once(model, inputs)
    return calls, output


def _same(output: Tensor, result: Tensor) -> bool:
    # A view of the layer's output, such as a squeeze, shares its memory and its number of elements.
    return output is result or (output.data_ptr() == result.data_ptr() and output.numel() == result.numel() > 0)


def _why(template: str, number: int, results: int) -> str:
    what = "the model's output" if results == 1 else f"tensor {number + 1} of the {results} that the model returns"
    return template.format(what=what)


def _last(texts: Sequence[str]) -> str:
    return (
        ", ".join(texts[-SHOWN:]) + (f" and {len(texts) - SHOWN} before them" if len(texts) > SHOWN else "") or "none"
    )
