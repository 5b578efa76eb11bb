"""B's neurons put in A's order: weight matching over the permutation groups of the model (Ainsworth et al. 2022)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call

from ckpt_probe.alignment.symmetry import Segment, Symmetry
from ckpt_probe.checkpoints import State
from ckpt_probe.errors import DataError
from ckpt_probe.files import read_object
from ckpt_probe.models import logits_of
from ckpt_probe.progress import Progress, Silent

Permutations = dict[int, Tensor]
"""For each group which of B's channels stands at each of A's places, (n,)."""

RESTARTS = 3
SWEEPS = 100
"""Rounds over all groups after which the search stops even if it still gains."""

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SAME_OUTPUT = 1e-4


@dataclass(frozen=True)
class Alignment:
    """B in A's order, the permutations, ‖A − B‖ before and after, and how far outputs moved, relative to their size."""

    state: dict[str, Tensor]
    permutations: Permutations
    before: float
    after: float
    error: float


def align(
    a: State,
    b: State,
    symmetry: Symmetry,
    model: nn.Module,
    inputs: Tensor,
    *,
    restarts: int = RESTARTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Alignment:
    """B with its hidden channels permuted to lie as near to A as `match_weights` finds, `proved`."""
    permutations = match_weights(a, b, symmetry, restarts=restarts, seed=seed, progress=progress)
    return proved(a, b, symmetry, permutations, model, inputs)


def match_weights(
    a: State,
    b: State,
    symmetry: Symmetry,
    *,
    restarts: int = RESTARTS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Permutations:
    """The permutations under which B lies nearest to A, by coordinate descent over the groups, best of several starts.

    The first start is the order as it is, the others random ones from `seed`.
    """
    if restarts < 1:
        raise DataError(f"alignment: expected at least one restart, found {restarts}")
    axes = {place: parts for place, parts in symmetry.axes.items() if place[0] in a}
    symmetry = Symmetry(symmetry.sizes, axes)
    weights = {place[0] for place in axes if not place[0].endswith(STATISTICS)}
    first, second = ({name: state[name].double() for name in weights} for state in (a, b))
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, Permutations] | None = None
    with (progress or Silent()).task("alignment", restarts, "starts") as bar:
        for start in range(restarts):
            found = _matched(first, second, symmetry, generator, shuffled=start > 0)
            apart = _distance(first, permuted(second, symmetry, found))
            if best is None or apart < best[0]:
                best = apart, found
            bar.advance(distance=best[0])
    assert best is not None
    return best[1]


def proved(
    a: State, b: State, symmetry: Symmetry, permutations: Permutations, model: nn.Module, inputs: Tensor
) -> Alignment:
    """B permuted, once its outputs are shown to be its own.

    Raises DataError where they differ on `inputs` by more than 1e-4 relative: the groups are no symmetries then.
    """
    state = permuted(b, symmetry, permutations)
    error = output_change(model, b, state, inputs)
    if not error <= SAME_OUTPUT:
        raise DataError(
            f"alignment: permuting the channels changes the network's outputs by {error:.1e} relative (at most "
            f"{SAME_OUTPUT:g} is allowed): the groups are no symmetries of this model; pass them as --align-spec FILE"
        )
    return Alignment(state, permutations, _distance(a, b), _distance(a, state), error)


def permuted(
    state: State, symmetry: Symmetry, permutations: Permutations, *, but: int | None = None
) -> dict[str, Tensor]:
    """A state dict with every axis in its groups' new order; the group `but` is left as it is."""
    found = dict(state)
    for (name, axis), parts in symmetry.axes.items():
        if name in found and any(part.group is not None and part.group != but for part in parts):
            index = _index(parts, permutations, but)
            found[name] = found[name].index_select(axis, index.to(found[name].device))
    return found


def output_change(model: nn.Module, before: State, after: State, inputs: Tensor) -> float:
    """Largest change of an output over the largest output, between two sets of weights; the model keeps its own."""
    model.eval()
    with torch.no_grad():
        runs = [functional_call(model, placed(model, state), (inputs,)) for state in (before, after)]
    outputs = [logits_of(run).cpu().double() for run in runs]
    return float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max().clamp_min(1e-30))


def placed(model: nn.Module, state: State) -> dict[str, Tensor]:
    """A state dict in the dtypes and on the device of a model's own tensors."""
    return {name: state[name].to(own) for name, own in model.state_dict().items() if isinstance(own, Tensor)}


def read_spec(path: Path, state: State) -> Symmetry:
    """Groups from a JSON file: {"name": [["layer1.weight", 0], ["layer1.bias", 0], ["layer2.weight", 1]], …}.

    The first axis of a group says how many channels there are; an axis that is a multiple of it has each channel as
    that many neighbours. Raises DataError for anything that is no such file, or does not fit the tensors.
    """
    try:
        groups = read_object(path, "a file of permutation groups")
        places = [[(str(name), int(axis)) for name, axis in members] for members in groups.values()]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a file of permutation groups ({error})") from error
    sizes: dict[int, int] = {}
    axes: dict[tuple[str, int], tuple[Segment, ...]] = {}
    for number, members in enumerate(places):
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


def _matched(a: State, b: State, symmetry: Symmetry, generator: torch.Generator, *, shuffled: bool) -> Permutations:
    found = {
        group: torch.randperm(size, generator=generator) if shuffled else torch.arange(size)
        for group, size in symmetry.sizes.items()
    }
    groups = list(found)
    for _ in range(SWEEPS):
        gained = False
        for i in torch.randperm(len(groups), generator=generator).tolist():
            similarity = _similarity(a, b, symmetry, found, groups[i])
            _, columns = linear_sum_assignment(similarity.numpy(), maximize=True)
            better = torch.from_numpy(columns)
            rows = torch.arange(len(better))
            gain = similarity[rows, better].sum() - similarity[rows, found[groups[i]]].sum()
            if gain > 1e-9 * similarity.abs().sum():
                found[groups[i]], gained = better, True
        if not gained:
            return found
    return found


def _similarity(a: State, b: State, symmetry: Symmetry, permutations: Permutations, group: int) -> Tensor:
    """How alike each channel of A and each of B is, (n, n), over all axes on which a group acts."""
    size = symmetry.sizes[group]
    places = [place for place in symmetry.of_group(group) if place[0] in a]
    others = permuted({name: b[name] for name, _ in places}, symmetry, permutations, but=group)
    total = torch.zeros(size, size, dtype=torch.float64)
    for name, axis in places:
        start = 0
        for part in symmetry.axes[(name, axis)]:
            width = part.size * part.repeat
            if part.group == group:
                mine, theirs = (
                    s[name].narrow(axis, start, width).movedim(axis, 0).reshape(size, -1) for s in (a, others)
                )
                total += mine @ theirs.T
            start += width
    return total


def _index(parts: tuple[Segment, ...], permutations: Permutations, but: int | None) -> Tensor:
    pieces, start = [], 0
    for part in parts:
        order = torch.arange(part.size)
        if part.group is not None and part.group != but:
            order = permutations[part.group]
        pieces.append((start + order[:, None] * part.repeat + torch.arange(part.repeat)).flatten())
        start += part.size * part.repeat
    return torch.cat(pieces)


def _distance(a: State, b: State) -> float:
    squares = [(b[name].double() - t.double()).square().sum() for name, t in a.items() if t.is_floating_point()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
