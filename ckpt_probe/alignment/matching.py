"""Permutations of B's channels, by its weights (Ainsworth et al. 2022) or by correlations of its activations."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, fx, nn
from torch.func import functional_call

from ckpt_probe.alignment.symmetry import ChannelLayout, Segment, Symmetry
from ckpt_probe.checkpoints import State
from ckpt_probe.errors import DataError
from ckpt_probe.files import read_object
from ckpt_probe.metrics.rows import where_float64_is
from ckpt_probe.models import logits_of
from ckpt_probe.progress import NullProgress, Progress

Permutations = dict[int, Tensor]
"""For each group, the index of B's channel at each position of A, (n,)."""

RESTARTS = 3
SWEEPS = 100
"""Largest number of sweeps over all groups."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SAME_OUTPUT = 1e-4

CONSTANT = 1e-12
"""Variance relative to the mean square below which a channel counts as constant; its correlations are 0."""


class Alignment:
    """B with its channels in A's order, whose outputs are those of B.

    Args:
        a: State dict of A.
        b: State dict of B.
        symmetry: The groups.
        permutations: Permutations of B's channels.
        model: The network.
        inputs: Inputs on which the outputs are compared.

    Attributes:
        state: State dict of aligned B.
        before: ‖A − B‖ before alignment.
        after: ‖A − B‖ after alignment.
        error: Largest change of an output of B, relative to the largest output.

    Raises:
        DataError: If outputs change by more than 1e-4 relative, so that the groups are not symmetries.
    """

    def __init__(
        self, a: State, b: State, symmetry: Symmetry, permutations: Permutations, model: nn.Module, inputs: Tensor
    ) -> None:
        self.state = permuted(b, symmetry, permutations)
        self.before, self.after = _distance(a, b), _distance(a, self.state)
        self.error = output_change(model, b, self.state, inputs)
        if not self.error <= SAME_OUTPUT:
            fault = f"permuting the channels changes the network's outputs by {self.error:.1e} relative"
            cause = "the groups are no symmetries of this model; pass them with `align_spec=`"
            raise DataError(f"alignment: {fault} (at most {SAME_OUTPUT:g} is allowed): {cause}")


def match_weights(
    a: State, b: State, symmetry: Symmetry, *, restarts: int = RESTARTS, progress: Progress | None = None
) -> Permutations:
    """Minimise ‖A − B‖ over permutations of B's channels, by coordinate descent over the groups from several starts.

    Args:
        a: State dict of A.
        b: State dict of B.
        symmetry: The groups.
        restarts: Number of starts: the present order, then random orders.
        progress: Receives a bar.

    Returns:
        The best permutation of each group.
    """
    axes = {axis: parts for axis, parts in symmetry.axes.items() if axis[0] in a}
    symmetry = Symmetry(symmetry.sizes, axes)
    weights = {name for name, _ in axes if not name.endswith(STATISTICS)}
    first, second = ({name: state[name].double() for name in weights} for state in (a, b))
    generator = torch.Generator().manual_seed(0)
    searched: list[tuple[float, Permutations]] = []
    with (progress or NullProgress()).task("alignment", restarts, "starts") as bar:
        for start in range(restarts):
            permutations = _matched(first, second, symmetry, generator, shuffled=start > 0)
            searched.append((_distance(first, permuted(second, symmetry, permutations)), permutations))
            best = min(searched, key=lambda distance_and_permutations: distance_and_permutations[0])
            bar.advance(distance=best[0])
    return best[1]


def permuted(
    state: State, symmetry: Symmetry, permutations: Permutations, *, but: int | None = None
) -> dict[str, Tensor]:
    """Return a state dict with every axis in its groups' new order, except that of the group `but`."""
    result = dict(state)
    for (name, axis), parts in symmetry.axes.items():
        if name in result and any(part.group is not None and part.group != but for part in parts):
            index = _index(parts, permutations, but)
            result[name] = result[name].index_select(axis, index.to(result[name].device))
    return result


def output_change(model: nn.Module, before: State, after: State, inputs: Tensor) -> float:
    """Return the largest change of an output between two sets of weights, relative to the largest output."""
    model.eval()
    with torch.no_grad():
        runs = [functional_call(model, placed(model, state), (inputs,)) for state in (before, after)]
    outputs = [logits_of(run).cpu().double() for run in runs]
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max().clamp_min(1e-30))


def placed(model: nn.Module, state: State) -> dict[str, Tensor]:
    """Return a state dict in the dtypes and on the device of a model's tensors, equal for all names of one tensor."""
    entries = {name: e for name, e in model.state_dict(keep_vars=True).items() if isinstance(e, Tensor)}
    last = {id(entry): state[name].to(entry.detach()) for name, entry in entries.items()}
    return {name: last[id(entry)] for name, entry in entries.items()}


def read_spec(path: Path, state: State) -> Symmetry:
    """Read groups from a JSON file: {"name": [["layer1.weight", 0], ["layer1.bias", 0], ["layer2.weight", 1]], …}.

    The first axis of a group has its number of channels. On a k times longer axis, each channel has k neighbouring
    entries.

    Raises:
        DataError: If the file has another form or does not fit the tensors.
    """
    try:
        groups = read_object(path, "a file of permutation groups")
        groups_of_axes = [[(str(name), int(axis)) for name, axis in members] for members in groups.values()]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a file of permutation groups ({error})") from error
    sizes: dict[int, int] = {}
    axes: dict[tuple[str, int], tuple[Segment, ...]] = {}
    for number, members in enumerate(groups_of_axes):
        for name, axis in members:
            if name not in state or not 0 <= axis < state[name].ndim:
                raise DataError(f"{path}: the model has no tensor {name!r} with an axis {axis}")
            length = state[name].shape[axis]
            size = sizes.setdefault(number, length)
            if length % size or (name, axis) in axes:
                raise DataError(
                    f"{path}: axis {axis} of {name!r} has {length} entries in a group of {size}, or is listed twice"
                )
            axes[(name, axis)] = (Segment(number, size, length // size),)
    return Symmetry(sizes, axes)


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
    states = [placed(traced, state) for state in (a, b)]
    sums: dict[tuple[str, int, int], _Sums] = {}
    with torch.no_grad():
        for inputs in batches:
            first, second = (functional_call(traced, state, (inputs,)) for state in states)
            for name, layout in symmetry.activations.items():
                for start, group, of_a, of_b in _channels(layout, first[name], second[name]):
                    sums.setdefault((name, start, group), _Sums(len(of_a))).update(of_a, of_b)
    permutations = {}
    for group, size in symmetry.sizes.items():
        correlation = torch.zeros(size, size, dtype=torch.float64)
        for (name, _, ordered_by), segment_sums in sums.items():
            if ordered_by == group:
                correlation += segment_sums.correlation(name)
        permutations[group] = torch.from_numpy(linear_sum_assignment(correlation.numpy(), maximize=True)[1])
    return permutations


class _Sums:
    """Sums over samples from which the correlations of A's channels with B's are computed.

    Args:
        size: Number of channels of each network.
    """

    def __init__(self, size: int) -> None:
        self._count = 0
        # The first row has the values of A, the second those of B.
        self._sums, self._squares = torch.zeros(2, 2, size, dtype=torch.float64)
        self._products = torch.zeros(size, size, dtype=torch.float64)

    def update(self, of_a: Tensor, of_b: Tensor) -> None:
        self._count += of_a.shape[1]
        for number, channels in enumerate((of_a, of_b)):
            self._sums[number] += channels.sum(dim=1).cpu()
            self._squares[number] += channels.square().sum(dim=1).cpu()
        self._products += (of_a @ of_b.T).cpu()

    def correlation(self, name: str) -> Tensor:
        """Return correlations (size, size), A's channels in rows; 0 for a constant channel."""
        if not bool(torch.isfinite(self._products).all()):
            raise DataError(f"alignment: activations at {name} are NaN or infinite")
        means, squares = self._sums / self._count, self._squares / self._count
        variance = squares - means.square()
        scales = torch.where(variance > CONSTANT * squares, variance.clamp_min(1e-300).rsqrt(), 0.0)
        covariance = self._products / self._count - means[0][:, None] * means[1]
        return scales[0][:, None] * covariance * scales[1]


def _matched(a: State, b: State, symmetry: Symmetry, generator: torch.Generator, *, shuffled: bool) -> Permutations:
    permutations = {
        group: torch.randperm(size, generator=generator) if shuffled else torch.arange(size)
        for group, size in symmetry.sizes.items()
    }
    groups = list(permutations)
    for _ in range(SWEEPS):
        gained = False
        for i in torch.randperm(len(groups), generator=generator).tolist():
            similarity = _similarity(a, b, symmetry, permutations, groups[i])
            _, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
            better = torch.from_numpy(columns)
            rows = torch.arange(len(better))
            gain = similarity[rows, better].sum() - similarity[rows, permutations[groups[i]]].sum()
            if gain > 1e-9 * similarity.abs().sum():
                permutations[groups[i]], gained = better, True
        if not gained:
            return permutations
    return permutations


def _similarity(a: State, b: State, symmetry: Symmetry, permutations: Permutations, group: int) -> Tensor:
    """Return inner products of A's channels with B's, (n, n), over all axes on which a group acts."""
    size = symmetry.sizes[group]
    axes = [(name, axis) for name, axis in symmetry.of_group(group) if name in a]
    others = permuted({name: b[name] for name, _ in axes}, symmetry, permutations, but=group)
    total = torch.zeros(size, size, dtype=torch.float64)
    for name, axis in axes:
        for part, start, stop in _spans(symmetry.axes[(name, axis)]):
            if part.group == group:
                of_a, of_b = (s[name].movedim(axis, 0)[start:stop].reshape(size, -1) for s in (a, others))
                total += of_a @ of_b.T
    return total


def _index(parts: tuple[Segment, ...], permutations: Permutations, but: int | None) -> Tensor:
    pieces = []
    for part, start, _ in _spans(parts):
        order = torch.arange(part.size)
        if part.group is not None and part.group != but:
            order = permutations[part.group]
        pieces.append((start + order[:, None] * part.repeat + torch.arange(part.repeat)).flatten())
    return torch.cat(pieces)


def _distance(a: State, b: State) -> float:
    squares = [(b[name].double() - t.double()).square().sum() for name, t in a.items() if t.is_floating_point()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _with_activations(model: nn.Module, symmetry: Symmetry) -> fx.GraphModule:
    """Return the traced model with a dict of the activations that groups order as its output."""
    traced = fx.symbolic_trace(model)
    *_, output = traced.graph.nodes
    output.args = ({node.name: node for node in traced.graph.nodes if node.name in symmetry.activations},)
    traced.recompile()
    return traced.eval()


def _channels(layout: ChannelLayout, a: Tensor, b: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield start, group and the channels (size, samples) in float64, of a and of b, of each segment with a group."""
    of_a, of_b = (where_float64_is(value).movedim(layout.axis, 0) for value in (a, b))
    for part, start, stop in _spans(layout.segments):
        if part.group is not None:
            first, second = (rows[start:stop].reshape(part.size, -1).to(torch.float64) for rows in (of_a, of_b))
            yield start, part.group, first, second


def _spans(parts: Sequence[Segment]) -> Iterator[tuple[Segment, int, int]]:
    """Yield each segment of an axis with its first entry and the first one after it."""
    start = 0
    for part in parts:
        stop = start + part.size * part.repeat
        yield part, start, stop
        start = stop
