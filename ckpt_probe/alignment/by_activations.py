"""B's neurons put in A's order by what they do on data: those whose activations go together are matched."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, fx, nn
from torch.func import functional_call

from ckpt_probe.alignment.by_weights import Permutations, placed
from ckpt_probe.alignment.symmetry import Layout, Segment, Symmetry
from ckpt_probe.checkpoints import State
from ckpt_probe.errors import DataError
from ckpt_probe.metrics.gram import where_float64_is

CONSTANT = 1e-12
"""Variance, relative to the mean square, below which a channel does not vary, and correlates with none."""


def match_activations(
    a: State, b: State, symmetry: Symmetry, model: nn.Module, batches: Iterable[Tensor]
) -> Permutations:
    """For each group the permutation of B's channels whose activations correlate most with A's (Li et al. 2015).

    symmetry: as traced, since the groups are looked for among the activations; every activation that a group orders
    counts alike. Positions of an image count as samples. Raises DataError where an activation is NaN or infinite.
    """
    watched = _watching(model, symmetry)
    states = [placed(model, state) for state in (a, b)]
    found: dict[tuple[str, int], _Sums] = {}
    with torch.no_grad():
        for inputs in batches:
            first, second = (functional_call(watched, state, (inputs,)) for state in states)
            for name, layout in symmetry.activations.items():
                for place, (mine, theirs) in enumerate(zip(*_channels(layout, first[name], second[name]), strict=True)):
                    found.setdefault((name, place), _Sums.of(len(mine))).update(mine, theirs)
    permutations = {}
    for group, size in symmetry.sizes.items():
        alike = torch.zeros(size, size, dtype=torch.float64)
        for (name, place), sums in found.items():
            if _grouped(symmetry.activations[name])[place].group == group:
                alike += sums.correlation(name)
        permutations[group] = torch.from_numpy(linear_sum_assignment(alike.numpy(), maximize=True)[1])
    return permutations


def _watching(model: nn.Module, symmetry: Symmetry) -> fx.GraphModule:
    """The model as traced, with the activations that groups order for its output, by the names of their nodes."""
    traced = fx.symbolic_trace(model)
    *_, output = traced.graph.nodes
    output.args = ({node.name: node for node in traced.graph.nodes if node.name in symmetry.activations},)
    traced.recompile()
    return traced.eval()


def _channels(layout: Layout, *values: Tensor) -> list[list[Tensor]]:
    """Of each tensor the channels (size, samples) of every segment that has a group, float64."""
    found = []
    for value in values:
        rows, start, parts = where_float64_is(value).movedim(layout.axis, 0), 0, []
        for part in layout.segments:
            width = part.size * part.repeat
            if part.group is not None:
                parts.append(rows[start : start + width].reshape(part.size, -1).to(torch.float64))
            start += width
        found.append(parts)
    return found


def _grouped(layout: Layout) -> list[Segment]:
    return [part for part in layout.segments if part.group is not None]


@dataclass
class _Sums:
    """What the correlation of each of A's channels with each of B's is made of, over the samples so far."""

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

    def update(self, mine: Tensor, theirs: Tensor) -> None:
        self.count += mine.shape[1]
        self.first += mine.sum(dim=1).cpu()
        self.second += theirs.sum(dim=1).cpu()
        self.first_squares += mine.square().sum(dim=1).cpu()
        self.second_squares += theirs.square().sum(dim=1).cpu()
        self.products += (mine @ theirs.T).cpu()

    def correlation(self, name: str) -> Tensor:
        """(size, size), A's channels in rows; 0 for a channel that does not vary."""
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
