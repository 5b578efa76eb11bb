"""Permutations of B's channels that maximise the correlation of their activations with A's."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, fx, nn
from torch.func import functional_call

from ckpt_probe.alignment.by_weights import Permutations, placed
from ckpt_probe.alignment.symmetry import ChannelLayout, Segment, Symmetry
from ckpt_probe.checkpoints import State
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.gram import where_float64_is

CONSTANT = 1e-12
"""Variance relative to the mean square below which a channel counts as constant; its correlations are 0."""


def match_activations(
    a: State, b: State, symmetry: Symmetry, model: nn.Module, batches: Iterable[Tensor]
) -> Permutations:
    """Match B's channels to A's by the correlation of their activations (Li et al. 2015).

    All activations whose channels a group orders have the same weight. Positions of an image count as samples.

    Args:
        a: State dict of A.
        b: State dict of B.
        symmetry: Groups traced from the model, with the activations that they order.
        model: The network.
        batches: Inputs (n, …).

    Returns:
        For each group, the permutation of B's channels.

    Raises:
        DataError: If an activation is NaN or infinite.
    """
    traced = _with_activations(model, symmetry)
    states = [placed(model, state) for state in (a, b)]
    sums: dict[tuple[str, int], _Sums] = {}
    with torch.no_grad():
        for inputs in batches:
            first, second = (functional_call(traced, state, (inputs,)) for state in states)
            for name, layout in symmetry.activations.items():
                pairs = zip(*_channels(layout, first[name], second[name]), strict=True)
                for index, (of_a, of_b) in enumerate(pairs):
                    sums.setdefault((name, index), _Sums.of(len(of_a))).update(of_a, of_b)
    permutations = {}
    for group, size in symmetry.sizes.items():
        correlation = torch.zeros(size, size, dtype=torch.float64)
        for (name, index), segment_sums in sums.items():
            if _grouped(symmetry.activations[name])[index].group == group:
                correlation += segment_sums.correlation(name)
        permutations[group] = torch.from_numpy(linear_sum_assignment(correlation.numpy(), maximize=True)[1])
    return permutations


def _with_activations(model: nn.Module, symmetry: Symmetry) -> fx.GraphModule:
    """Return the traced model with a dict of the activations that groups order as its output."""
    traced = fx.symbolic_trace(model)
    *_, output = traced.graph.nodes
    output.args = ({node.name: node for node in traced.graph.nodes if node.name in symmetry.activations},)
    traced.recompile()
    return traced.eval()


def _channels(layout: ChannelLayout, *values: Tensor) -> list[list[Tensor]]:
    """Return, for each tensor, the channels (size, samples) in float64 of every segment with a group."""
    channels = []
    for value in values:
        rows, start, parts = where_float64_is(value).movedim(layout.axis, 0), 0, []
        for part in layout.segments:
            width = part.size * part.repeat
            if part.group is not None:
                parts.append(rows[start : start + width].reshape(part.size, -1).to(torch.float64))
            start += width
        channels.append(parts)
    return channels


def _grouped(layout: ChannelLayout) -> list[Segment]:
    return [part for part in layout.segments if part.group is not None]


@dataclass
class _Sums:
    """Sums over samples from which the correlations of A's channels with B's are computed."""

    count: int
    first: Tensor
    second: Tensor
    first_squares: Tensor
    second_squares: Tensor
    products: Tensor

    @staticmethod
    def of(size: int) -> "_Sums":
        a, b, a_squares, b_squares = torch.zeros(4, size, dtype=torch.float64)
        return _Sums(0, a, b, a_squares, b_squares, torch.zeros(size, size, dtype=torch.float64))

    def update(self, of_a: Tensor, of_b: Tensor) -> None:
        self.count += of_a.shape[1]
        self.first += of_a.sum(dim=1).cpu()
        self.second += of_b.sum(dim=1).cpu()
        self.first_squares += of_a.square().sum(dim=1).cpu()
        self.second_squares += of_b.square().sum(dim=1).cpu()
        self.products += (of_a @ of_b.T).cpu()

    def correlation(self, name: str) -> Tensor:
        """Return correlations (size, size), A's channels in rows; 0 for a constant channel."""
        if not bool(torch.isfinite(self.products).all()):
            raise DataError(f"alignment: activations at {name} are NaN or infinite")
        means = self.first / self.count, self.second / self.count
        squares = self.first_squares / self.count, self.second_squares / self.count
        scales = [_scale(mean, square) for mean, square in zip(means, squares, strict=True)]
        covariance = self.products / self.count - means[0][:, None] * means[1]
        return scales[0][:, None] * covariance * scales[1]


def _scale(mean: Tensor, square: Tensor) -> Tensor:
    variance = square - mean.square()
    varies = variance > CONSTANT * square
    return torch.where(varies, variance.clamp_min(1e-300).rsqrt(), torch.zeros_like(variance))
