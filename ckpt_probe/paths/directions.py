"""Planes of weights: through three checkpoints, along two random directions from one, or along a trajectory."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import State
from ckpt_probe.errors import DataError, error_context
from ckpt_probe.paths.shapes import exact_dtype, require_finite
from ckpt_probe.trajectories.layout import BUFFER
from ckpt_probe.trajectories.motion import Trajectory


@dataclass(frozen=True)
class Plane:
    """The weights θ(x, y) = θ_A + s·first + t·second with s = slopes[0]·x + slopes[1]·y and t = slopes[2]·y.

    Attributes:
        origin: State dict of A.
        first: Displacements of the tensors that move, float32 or float64.
        second: Displacements of the same tensors, in the other direction.
        slopes: Factors between coordinates and displacements.
        marks: Name, x and y of each checkpoint, A first.
        axes: Lengths of the axes, and their angle or cosine.
    """

    origin: State
    first: State
    second: State
    slopes: tuple[float, float, float]
    marks: tuple[tuple[str, float, float], ...]
    axes: dict[str, Any]

    def at(self, x: float, y: float) -> dict[str, Tensor]:
        """Compute the state dict at (x, y): in float32 (float64 for float64) the tensors that move, others from A."""
        s, t = self.slopes[0] * x + self.slopes[1] * y, self.slopes[2] * y
        moved = {
            name: (self.origin[name].to(step.dtype) + s * step).add_(t * self.second[name])
            for name, step in self.first.items()
        }
        return {**self.origin, **moved}


def plane_through(a: State, b: State, c: State) -> Plane:
    """Build the plane through three checkpoints (Garipov et al. 2018, section 3), with distances as coordinates.

    x runs along u = B − A, y along v = C − A − ⟨C − A, û⟩û, over all floating-point tensors; others are those of A.
    A is at (0, 0), B at (‖u‖, 0), C at (⟨C − A, û⟩, ‖v‖).

    Args:
        a: State dict of A.
        b: State dict of B.
        c: State dict of C.

    Returns:
        The plane; `axes` has the three distances and the angle at A in degrees.

    Raises:
        DataError: If two are equal, all lie on one line within rounding, or a number is NaN or infinite.
    """
    names = [name for name, tensor in a.items() if tensor.is_floating_point()]
    for letter, state in (("A", a), ("B", b), ("C", c)):
        with error_context(f"{letter}: "):
            for name in names:
                require_finite(name, state[name])
    u, w, other = (_difference(*pair, names) for pair in ((b, a), (c, a), (c, b)))
    for pair, step in (("A and B", u), ("A and C", w), ("B and C", other)):
        if _dot(step, step) == 0:
            raise DataError(f"{pair} have the same weights; a plane needs three different checkpoints")
    length = math.sqrt(_dot(u, u))
    along = _dot(w, u) / length
    height = math.sqrt(sum(float((w[n].double() - along / length * u[n].double()).square().sum()) for n in names))
    if height <= _rounding(c, names):
        raise DataError(
            f"A, B and C lie on one line (C is {height:.2g} off it, which is rounding) and span no plane; "
            "use interpolate to evaluate the line"
        )
    slopes = 1 / length, -along / (length * height), 1 / height
    axes = {
        "distance.ab": length,
        "distance.ac": math.hypot(along, height),
        "distance.bc": math.hypot(along - length, height),
        "angle": math.degrees(math.atan2(height, along)),
    }
    return Plane(a, u, w, slopes, (("A", 0.0, 0.0), ("B", length, 0.0), ("C", along, height)), axes)


def trajectory_plane(states: Iterable[State], trajectory: Trajectory) -> Plane:
    """Build the plane of a trajectory: its two main directions through the mean of all checkpoints.

    Coordinates are distances from the mean. Floating-point tensors whose names are those of buffers keep their mean;
    others are those of the last checkpoint.

    Args:
        states: State dicts of the checkpoints in order, read one at a time.
        trajectory: Trajectory of their parameters.

    Returns:
        The plane; `axes` has the shares of variance of both directions, and those of a random walk.
    """
    sums: list[dict[str, Tensor]] = [{}, {}, {}]
    last: State = {}
    count = len(trajectory.coordinates)
    for t, state in enumerate(states):
        factors = (1 / count, *map(float, trajectory.weights[:, t]))
        for name, tensor in state.items():
            if tensor.is_floating_point():
                with error_context(f"checkpoint {t + 1}: "):
                    require_finite(name, tensor)
                for total, factor in zip(sums if not BUFFER.search(name) else sums[:1], factors, strict=False):
                    total[name] = total.get(name, 0.0) + factor * tensor.double()
        last = state
    mean, first, second = ({name: t.to(exact_dtype(last[name])) for name, t in total.items()} for total in sums)
    marks = tuple((str(t + 1), float(x), float(y)) for t, (x, y) in enumerate(trajectory.coordinates))
    axes = {}
    for i, name in enumerate(("first", "second")):
        axes |= {f"share.{name}": trajectory.shares[i], f"walk.{name}": trajectory.walk_shares[i]}
    return Plane({**last, **mean}, first, second, (1.0, 0.0, 1.0), marks, axes)


def random_plane(a: State, model: nn.Module, seed: int) -> Plane:
    """Build the plane along two filter-normalised random directions from a checkpoint (Li et al. 2018, section 4).

    A is at (0, 0); one unit of x or y moves each filter by its own norm. The directions are not orthogonal.

    Args:
        a: State dict of the checkpoint.
        model: The network.
        seed: Seed of the directions.

    Returns:
        The plane; `axes` has the lengths and the cosine of the directions.

    Raises:
        DataError: If no parameter of the model has two or more axes.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = (random_direction(a, model, generator) for _ in range(2))
    if not first:
        raise DataError("no parameter has two or more axes, so there is no filter to move")
    lengths = [math.sqrt(_dot(direction, direction)) for direction in (first, second)]
    axes = {
        "length.first": lengths[0],
        "length.second": lengths[1],
        "cosine": _dot(first, second) / (lengths[0] * lengths[1]) if all(lengths) else None,
    }
    return Plane(a, first, second, (1.0, 0.0, 1.0), (("A", 0.0, 0.0),), axes)


def random_direction(state: State, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw Gaussian directions for parameters of two or more axes, with the filter norms of the checkpoint.

    Biases, parameters of normalisation layers and buffers have no direction and do not move.
    """
    drawn: dict[int, Tensor] = {}
    directions = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.ndim < 2 or not state[name].is_floating_point():
            continue
        # Tied parameters have several names and move as one.
        if id(parameter) not in drawn:
            require_finite(name, state[name])
            drawn[id(parameter)] = filter_normalised(torch.randn(parameter.shape, generator=generator), state[name])
        directions[name] = drawn[id(parameter)]
    return directions


def filter_normalised(direction: Tensor, weights: Tensor) -> Tensor:
    """Scale each slice of a direction along the first axis to the norm of that slice of the weights (both n × …)."""
    exact = exact_dtype(weights)
    wanted, norms = (tensor.to(exact).flatten(1).norm(dim=1) for tensor in (weights, direction))
    scale = wanted / norms.clamp_min(torch.finfo(exact).tiny)
    return direction.to(exact) * scale.view(-1, *[1] * (direction.ndim - 1))


def _difference(b: State, a: State, names: list[str]) -> dict[str, Tensor]:
    return {name: b[name].to(exact_dtype(b[name])) - a[name].to(exact_dtype(a[name])) for name in names}


def _dot(first: State, second: State) -> float:
    return sum(float((tensor.double() * second[name].double()).sum()) for name, tensor in first.items())


def _rounding(state: State, names: list[str]) -> float:
    """Return the distance by which rounding to nearest may have moved a state dict."""
    squares = [(torch.finfo(state[n].dtype).eps / 2) ** 2 * float(state[n].double().square().sum()) for n in names]
    return math.sqrt(sum(squares))
