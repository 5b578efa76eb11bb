"""Permutation groups of a network's channels, derived from a trace of the model.

Every tensor in the trace has a layout of its channel axis: segments of channels, each of one group or fixed. A layer
gives its output channels a new group and ties the axes of its weights to the layouts of input and output. An addition
unites the groups of both sides. An operation on single channels fixes their groups.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from ckpt_probe.errors import DataError

HINT = "name the groups yourself with `align_spec=`"
CHANNELWISE = frozenset({
    "relu", "relu6", "leakyrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid", "logsigmoid",
    "softplus", "softsign", "hardswish", "hardtanh", "hardsigmoid", "tanhshrink", "hardshrink", "softshrink",
    "threshold", "identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "maxpool1d",
    "maxpool2d", "maxpool3d", "avgpool1d", "avgpool2d", "avgpool3d", "adaptiveavgpool1d", "adaptiveavgpool2d",
    "adaptiveavgpool3d", "adaptivemaxpool1d", "adaptivemaxpool2d", "adaptivemaxpool3d", "upsample", "interpolate",
    "contiguous", "clone", "detach", "float", "abs", "exp", "sqrt", "clamp", "neg",
})  # fmt: skip
"""Layers, functions and methods, without underscores, that act on every channel in the same way and keep their axis."""

SUMS = frozenset({operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, operator.truediv})
SUM_NAMES = frozenset({"add", "add_", "mul", "mul_", "sub", "div"})


@dataclass(frozen=True)
class Segment:
    """A run of `size` channels of one group (None: fixed), each with `repeat` neighbouring entries."""

    group: int | None
    size: int
    repeat: int = 1


@dataclass(frozen=True)
class ChannelLayout:
    """Segments along one axis of a tensor."""

    axis: int
    segments: tuple[Segment, ...]

    @property
    def length(self) -> int:
        """Number of entries along the axis."""
        return sum(segment.size * segment.repeat for segment in self.segments)


@dataclass(frozen=True)
class Symmetry:
    """Permutation groups and the axes on which they act.

    Attributes:
        sizes: Number of channels of each group.
        axes: Segments of each (tensor name, axis).
        activations: Layout of every activation that a group orders, by the name of its node in the trace; empty for
            groups that were not traced.
    """

    sizes: Mapping[int, int]
    axes: Mapping[tuple[str, int], tuple[Segment, ...]]
    activations: Mapping[str, ChannelLayout] = field(default_factory=dict)

    def of_group(self, group: int) -> list[tuple[str, int]]:
        """Return the axes on which a group acts."""
        return [axis for axis, parts in self.axes.items() if any(part.group == group for part in parts)]


def trace_symmetry(model: nn.Module, inputs: Tensor) -> Symmetry:
    """Derive the permutation groups of a model from its trace and the shapes of activations for a batch of inputs.

    Raises:
        DataError: If the model cannot be traced, or has an unknown module or function, naming it.
    """
    try:
        traced = fx.symbolic_trace(model)
        with torch.no_grad():
            ShapeProp(traced).propagate(inputs)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"the model cannot be traced ({reason}); {HINT}") from error
    walk = _Walk(traced, model)
    for node in traced.graph.nodes:
        walk.visit(node)
    return walk.symmetry()


class _Walk:
    """Follows the channel axis from node to node and unites groups that must be permuted together."""

    def __init__(self, traced: fx.GraphModule, model: nn.Module) -> None:
        self._modules = dict(traced.named_modules())
        self._layouts: dict[fx.Node, ChannelLayout] = {}
        self._axes: dict[tuple[str, int], tuple[Segment, ...]] = {}
        # Names of the same tensor: those of a layer or of weights that a model uses under several names.
        shared: dict[int, list[str]] = {}
        self._names = {
            name: shared.setdefault(id(entry), []) for name, entry in model.state_dict(keep_vars=True).items()
        }
        for name, names in self._names.items():
            names.append(name)
        # Group with which each group was united; None is the group of fixed channels.
        self._parents: dict[int | None, int | None] = {None: None}
        self._sizes: list[int] = []

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            shape = self._shape(node)
            axis = 1 if len(shape) > 1 else 0
            self._layouts[node] = ChannelLayout(axis, (Segment(None, shape[axis]),))
        elif node.op == "output":
            for argument in node.all_input_nodes:
                self._pin(self._layouts[argument])
        elif node.op == "call_module":
            self._layouts[node] = self._through_module(node, self._modules[str(node.target)])
        elif node.op in {"call_function", "call_method"}:
            self._layouts[node] = self._through_function(node)
        else:
            raise self._unknown(node, f"the parameter {node.target} used by itself")

    def symmetry(self) -> Symmetry:
        axes = {
            (name, axis): self._resolved(parts)
            for (first, axis), parts in self._axes.items()
            for name in self._same_tensor(first)
        }
        used = {part.group for parts in axes.values() for part in parts if part.group is not None}
        layouts = {
            node.name: ChannelLayout(layout.axis, self._resolved(layout.segments))
            for node, layout in self._layouts.items()
        }
        activations = {
            name: layout for name, layout in layouts.items() if any(part.group in used for part in layout.segments)
        }
        return Symmetry({group: self._sizes[group] for group in sorted(used)}, axes, activations)

    def _through_module(self, node: fx.Node, module: nn.Module) -> ChannelLayout:
        name, shape = str(node.target), self._shape(node)
        if isinstance(module, nn.Embedding):
            out = self._fresh(len(shape) - 1, module.embedding_dim)
            self._tie(f"{name}.weight", 1, out)
            return out
        source = self._layouts[node.all_input_nodes[0]]
        if isinstance(module, nn.Linear):
            if source.axis != len(shape) - 1 and all(self._root(part.group) is None for part in source.segments):
                source = ChannelLayout(len(shape) - 1, (Segment(None, module.in_features),))
            if source.axis != len(shape) - 1:
                raise self._unknown(node, "a linear layer over an axis that is not the channels'")
            self._tie(f"{name}.weight", 1, source)
            return self._tied(self._fresh(source.axis, module.out_features), f"{name}.weight", f"{name}.bias")
        if isinstance(module, nn.modules.conv._ConvNd):
            return self._through_convolution(name, module, source)
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.PReLU) and source.axis != 1:
            return source  # it has parameters of another axis
        if isinstance(module, nn.modules.batchnorm._NormBase):
            return self._tied(source, *(f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")))
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            if module.normalized_shape != (source.length,) or source.axis != len(shape) - 1:
                self._pin(source)
                return source
            return self._tied(source, f"{name}.weight", f"{name}.bias")
        if isinstance(module, nn.GroupNorm):
            if module.num_groups not in {1, module.num_channels}:
                self._pin(source)
            return self._tied(source, f"{name}.weight", f"{name}.bias")
        if isinstance(module, nn.PReLU):
            return self._tied(source, f"{name}.weight") if module.num_parameters > 1 else source
        if isinstance(module, nn.Flatten) and module.start_dim == 1:
            return self._flattened(node, source)
        # The trace goes through the layers of all other packages.
        if type(module).__name__.lower() in CHANNELWISE:
            return source
        raise self._unknown(node, f"module {name}, a {type(module).__name__}")

    def _through_convolution(self, name: str, module: Any, source: ChannelLayout) -> ChannelLayout:
        # The weights are (out, in, …); those of a transposed convolution (in, out, …).
        of_output, of_input = (1, 0) if module.transposed else (0, 1)
        if module.groups == 1:
            out = self._fresh(1, module.out_channels)
            self._tie(f"{name}.weight", of_input, source)
            self._tie(f"{name}.weight", of_output, out)
            return self._tied(out, f"{name}.bias")
        if module.groups == module.in_channels:
            times = module.out_channels // module.in_channels
            parts = tuple(Segment(part.group, part.size, part.repeat * times) for part in source.segments)
            out = ChannelLayout(1, parts)
            self._tie(f"{name}.weight", 0, source if module.transposed else out)
            return self._tied(out, f"{name}.bias")
        # Channels could only be permuted within each group of the convolution; they are left fixed.
        self._pin(source)
        return ChannelLayout(1, (Segment(None, module.out_channels),))

    def _through_function(self, node: fx.Node) -> ChannelLayout:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        sources = [self._layouts[argument] for argument in node.all_input_nodes]
        if node.target in SUMS or name in SUM_NAMES:
            if len(sources) == 2:
                return self._joined(node, *sources)
            return sources[0]
        if name.replace("_", "") in CHANNELWISE and len(sources) == 1:
            return sources[0]
        if name in {"flatten", "view", "reshape"} and len(sources) == 1:
            return self._flattened(node, sources[0])
        if name in {"cat", "concat"}:
            axis = int(node.kwargs.get("dim", (*node.args, 0)[1])) % len(self._shape(node))  # pyright: ignore
            if all(source.axis == axis for source in sources):
                return ChannelLayout(axis, tuple(part for source in sources for part in source.segments))
        if name == "mean" and len(sources) == 1:
            axis = sources[0].axis
            dims = node.kwargs.get("dim", (*node.args, None)[1])
            before = len(self._shape(node.all_input_nodes[0]))
            gone = {d % before for d in ((dims,) if isinstance(dims, int) else dims or range(before))}  # pyright: ignore
            if axis not in gone:
                keep = node.kwargs.get("keepdim", len(node.args) > 2 and bool(node.args[2]))
                return ChannelLayout(axis if keep else axis - sum(d < axis for d in gone), sources[0].segments)
        raise self._unknown(node, f"function {name}")

    def _flattened(self, node: fx.Node, source: ChannelLayout) -> ChannelLayout:
        before, after = self._shape(node.all_input_nodes[0]), self._shape(node)
        if before == after:
            return source
        if source.axis != 1 or len(after) != 2 or after[0] != before[0]:
            raise self._unknown(node, f"a change of shape from {tuple(before)} to {tuple(after)}")
        positions = after[1] // before[1]
        return ChannelLayout(
            1, tuple(Segment(part.group, part.size, part.repeat * positions) for part in source.segments)
        )

    def _joined(self, node: fx.Node, first: ChannelLayout, second: ChannelLayout) -> ChannelLayout:
        if first.axis != second.axis:
            raise self._unknown(node, "a sum of tensors whose channels lie on other axes")
        if 1 in (first.length, second.length):
            return max(first, second, key=lambda layout: layout.length)  # one channel, which all others get
        if [(p.size, p.repeat) for p in first.segments] != [(p.size, p.repeat) for p in second.segments]:
            self._pin(first)
            self._pin(second)
            return ChannelLayout(first.axis, (Segment(None, self._shape(node)[first.axis]),))
        for a, b in zip(first.segments, second.segments, strict=True):
            self._unite(a.group, b.group)
        return first

    def _unite(self, a: int | None, b: int | None) -> None:
        first, second = self._root(a), self._root(b)
        if second is None:
            first, second = second, first
        self._parents[second] = first

    def _fresh(self, axis: int, size: int) -> ChannelLayout:
        group = len(self._sizes)
        self._parents[group] = group
        self._sizes.append(size)
        return ChannelLayout(axis, (Segment(group, size),))

    def _tied(self, layout: ChannelLayout, *names: str) -> ChannelLayout:
        for name in names:
            self._tie(name, 0, layout)
        return layout

    def _tie(self, name: str, axis: int, layout: ChannelLayout) -> None:
        name = self._same_tensor(name)[0]
        earlier = self._axes.get((name, axis))
        if earlier is None:
            self._axes[(name, axis)] = layout.segments
            return
        # A layer that is used twice has one set of weights, hence one order of channels.
        same = [(p.size, p.repeat) for p in earlier] == [(p.size, p.repeat) for p in layout.segments]
        for i, part in enumerate(earlier):
            self._unite(part.group, layout.segments[i].group if same else None)
        if not same:
            self._pin(layout)

    def _same_tensor(self, name: str) -> list[str]:
        """Return all names of a tensor of the model."""
        return self._names.get(name, [name])

    def _pin(self, layout: ChannelLayout) -> None:
        for part in layout.segments:
            self._unite(None, part.group)

    def _root(self, group: int | None) -> int | None:
        while self._parents[group] != group:
            group = self._parents[group]
        return group

    def _resolved(self, parts: tuple[Segment, ...]) -> tuple[Segment, ...]:
        return tuple(replace(part, group=self._root(part.group)) for part in parts)

    def _shape(self, node: fx.Node) -> torch.Size:
        meta = node.meta.get("tensor_meta")
        if meta is None or not hasattr(meta, "shape"):
            raise self._unknown(node, "something that gives no single tensor")
        return meta.shape

    def _unknown(self, node: fx.Node, what: str) -> DataError:
        return DataError(f"alignment: unknown operation, {what} (at {node.name}); {HINT}")
