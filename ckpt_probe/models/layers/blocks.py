"""What a person would call the layers of a model, found from what repeats among its modules."""

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from ckpt_probe.models.layers.passing import Seen

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""Modules that only hold others; classes derived from them are layers like any other."""


def blocks_of(model: nn.Module, seen: Mapping[str, Seen], heads: Sequence[str]) -> list[Seen]:
    """The blocks of a model before its `heads` in the order in which they end, and the stem before them.

    A block is an outermost module with weights and parts of its own whose class occurs again, or that stands in a list:
    a residual block, a transformer block. A stage, which holds a list of equal blocks, stands for these. A model
    without any has its linear and convolution layers, each with what follows up to the next. The stem is what ends
    last before the first block starts and gives what that block is given. Rows that enter a head as they are, are its.
    """
    until = min((seen[name].started for name in heads if name in seen), default=2**62)
    entering = {feeder for name in heads if name in seen for feeder in seen[name].fed_by}
    found = {name: one for name, one in seen.items() if one.finished < until}
    kinds = Counter(type(one.module) for one in found.values() if _is_block(one.module))
    chosen: list[str] = []
    for name, one in found.items():
        within = any(name.startswith(f"{outer}.") for outer in chosen)
        if within or not _is_block(one.module):
            continue
        if kinds[type(one.module)] > 1 or type(_parent(model, name)) in LISTS:
            chosen.append(name)
    blocks = [inner for name in chosen for inner in _inside(found, name)]
    layers = [*_stem(found, blocks), *blocks] if blocks else _leaf_layers(found)
    layers = [one for one in layers if one.name not in entering or len(one.shape or ()) > 2]
    return sorted(layers, key=lambda one: one.finished)


def _is_block(module: nn.Module) -> bool:
    """Whether a module has parts and, somewhere in it, a matrix: neither a mere list nor an activation or a norm."""
    if type(module) in LISTS or not any(True for _ in module.children()):
        return False
    return any(weights.ndim > 1 for weights in module.parameters())


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def _inside(found: Mapping[str, Seen], name: str) -> list[Seen]:
    """A block itself, or, where it is a stage, the equal blocks that it holds in a list."""
    module = found[name].module
    lists = {name: module, **{f"{name}.{key}": part for key, part in module.named_children()}}
    for place, part in lists.items():
        names = [f"{place}.{key}" for key, _ in part.named_children()]
        if isinstance(part, nn.Sequential | nn.ModuleList) and _are_equal(found, names):
            return [inner for inner_name in names for inner in _inside(found, inner_name)]
    return [found[name]]


def _are_equal(found: Mapping[str, Seen], names: list[str]) -> bool:
    """Whether these are two blocks or more of one class, the last two with outputs of one shape."""
    if len(names) < 2 or any(name not in found or not _is_block(found[name].module) for name in names):
        return False
    same_class = len({type(found[name].module) for name in names}) == 1
    return same_class and found[names[-1]].shape == found[names[-2]].shape


def _leaf_layers(found: Mapping[str, Seen]) -> list[Seen]:
    """For each leaf with a matrix the last leaf that ran once, in its own list, before the next such leaf."""
    leaves = sorted((one for one in found.values() if _is_leaf(one.module)), key=lambda one: one.finished)
    layers: list[Seen] = []
    for leaf in leaves:
        if any(weights.ndim > 1 for weights in leaf.module.parameters()):
            layers.append(leaf)
        elif layers and leaf.calls == 1 and _follows(leaf, layers[-1]):
            layers[-1] = leaf
    return [layer for layer in layers if _gives_rows(layer)]


def _is_leaf(module: nn.Module) -> bool:
    return not any(True for _ in module.children())


def _follows(leaf: Seen, layer: Seen) -> bool:
    same_place = leaf.name.rpartition(".")[0] == layer.name.rpartition(".")[0]
    return same_place and _gives_rows(leaf) and len(leaf.shape or ()) == len(layer.shape or ())


def _gives_rows(one: Seen) -> bool:
    return one.shape is not None and len(one.shape) > 1


def _stem(found: Mapping[str, Seen], blocks: list[Seen]) -> list[Seen]:
    first = min(blocks, key=lambda one: one.started)
    before = [one for one in found.values() if one.finished < first.started and one.shape == first.given]
    return sorted(before, key=lambda one: one.finished)[-1:] if _gives_rows(first) else []
