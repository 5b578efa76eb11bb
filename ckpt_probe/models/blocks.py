"""The blocks of a model, from the modules that run in one forward pass and repetition among them."""

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from torch import Tensor, nn

from ckpt_probe.models.calling import Batch, forward_once


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
    clock, outputs = count(), {}
    with ExitStack() as hooks:
        for run in runs.values():
            before, after = partial(_note_start, run, clock, outputs), partial(_note_end, run, clock, outputs)
            hooks.enter_context(run.module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.enter_context(run.module.register_forward_hook(after))
        forward_once(model, inputs)
    return {name: run for name, run in runs.items() if run.calls}


def activation_in(output: Any) -> Tensor | None:
    """Return the activation in a module's output: a tensor, the first one of a sequence or mapping, or None."""
    if isinstance(output, Tensor):
        return output
    parts = list(output.values()) if isinstance(output, Mapping) else output
    if not isinstance(parts, Sequence):
        return None
    return next((part for part in parts if isinstance(part, Tensor)), None)


def _note_start(
    run: ModuleRun, clock: Any, outputs: Mapping[str, Any], _: nn.Module, arguments: Any, named: Any
) -> None:
    received = activation_in((*arguments, *named.values()))
    run.started, run.input_shape = next(clock), None if received is None else tuple(received.shape)
    run.fed_by = frozenset(name for name, output in outputs.items() if received is not None and output() is received)


def _note_end(run: ModuleRun, clock: Any, outputs: dict[str, Any], _: nn.Module, _arguments: Any, output: Any) -> None:
    activation = activation_in(output)
    run.calls += 1
    run.finished, run.shape = next(clock), None if activation is None else tuple(activation.shape)
    if activation is not None:
        outputs[run.name] = weakref.ref(activation)


LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that only contain others; classes derived from them are layers like any other."""


def blocks_of(model: nn.Module, seen: Mapping[str, ModuleRun], heads: Sequence[str]) -> list[ModuleRun]:
    """Return the stem and blocks of a model before its heads, in the order in which they finish.

    A block is an outermost module with weights and submodules whose class occurs again or that is in a list: a
    residual block, a transformer block. A stage with a list of equal blocks is replaced by these. In a model without
    blocks, every linear and convolution layer counts, each with the following layers up to the next. The stem is the
    last module before the first block whose output has the shape of the block's input. The input of a head is excluded.

    Args:
        model: The model.
        seen: Modules that ran in a forward pass, by name.
        heads: Names of the head's layers.
    """
    until = min((seen[name].started for name in heads if name in seen), default=2**62)
    entering = {feeder for name in heads if name in seen for feeder in seen[name].fed_by}
    candidates = {name: run for name, run in seen.items() if run.finished < until}
    kinds = Counter(type(run.module) for run in candidates.values() if _is_block(run.module))
    chosen: list[str] = []
    for name, run in candidates.items():
        within = any(name.startswith(f"{outer}.") for outer in chosen)
        if within or not _is_block(run.module):
            continue
        if kinds[type(run.module)] > 1 or type(_parent(model, name)) in LISTS:
            chosen.append(name)
    blocks = [inner for name in chosen for inner in _inside(candidates, name)]
    layers = [*_stem(candidates, blocks), *blocks] if blocks else _leaf_layers(candidates)
    layers = [run for run in layers if run.name not in entering or len(run.shape or ()) > 2]
    return sorted(layers, key=lambda run: run.finished)


def _is_block(module: nn.Module) -> bool:
    """Return whether a module has submodules and a matrix, and is not only a list."""
    if type(module) in LISTS or not any(True for _ in module.children()):
        return False
    return any(weights.ndim > 1 for weights in module.parameters())


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _inside(candidates: Mapping[str, ModuleRun], name: str) -> list[ModuleRun]:
    """Return a block, or the equal blocks in its list if it is a stage."""
    module = candidates[name].module
    lists = {name: module, **{f"{name}.{key}": part for key, part in module.named_children()}}
    for list_name, part in lists.items():
        names = [f"{list_name}.{key}" for key, _ in part.named_children()]
        if isinstance(part, nn.Sequential | nn.ModuleList) and _are_equal(candidates, names):
            return [inner for inner_name in names for inner in _inside(candidates, inner_name)]
    return [candidates[name]]


def _are_equal(candidates: Mapping[str, ModuleRun], names: list[str]) -> bool:
    """Return whether modules are at least two blocks of one class, the last two with outputs of the same shape."""
    if len(names) < 2 or any(name not in candidates or not _is_block(candidates[name].module) for name in names):
        return False
    same_class = len({type(candidates[name].module) for name in names}) == 1
    return same_class and candidates[names[-1]].shape == candidates[names[-2]].shape


def _leaf_layers(candidates: Mapping[str, ModuleRun]) -> list[ModuleRun]:
    """Return for each leaf with a matrix the last leaf in the same list that ran once before the next such leaf."""
    leaves = [run for run in candidates.values() if not any(True for _ in run.module.children())]
    layers: list[ModuleRun] = []
    for leaf in sorted(leaves, key=lambda run: run.finished):
        if any(weights.ndim > 1 for weights in leaf.module.parameters()):
            layers.append(leaf)
        elif layers and leaf.calls == 1 and _follows(leaf, layers[-1]):
            layers[-1] = leaf
    return [layer for layer in layers if _gives_rows(layer)]


def _follows(leaf: ModuleRun, layer: ModuleRun) -> bool:
    same_place = leaf.name.rpartition(".")[0] == layer.name.rpartition(".")[0]
    return same_place and _gives_rows(leaf) and len(leaf.shape or ()) == len(layer.shape or ())


def _gives_rows(run: ModuleRun) -> bool:
    return run.shape is not None and len(run.shape) > 1


def _stem(candidates: Mapping[str, ModuleRun], blocks: list[ModuleRun]) -> list[ModuleRun]:
    first = min(blocks, key=lambda run: run.started)
    before = [run for run in candidates.values() if run.finished < first.started and run.shape == first.input_shape]
    return sorted(before, key=lambda run: run.finished)[-1:] if _gives_rows(first) else []
