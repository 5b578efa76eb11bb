"""Positions in weight space as state dicts: on a line, an arc or a curve over a third point M, and in a plane."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import State
from ckpt_probe.errors import DataError, error_context
from ckpt_probe.trajectories.layout import BUFFER
from ckpt_probe.trajectories.motion import Trajectory

Path = Callable[[float], State]

Curve = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Function of one tensor of A, of M and of B, and α, that returns the tensor at α."""

COLINEAR = 1e-6
"""Sine of the angle below which two tensors count as parallel, so that the arc is a line."""

PIECES = 32
"""Number of straight pieces by which the length of a curve is measured."""


def path_of(shape: str, a: State, b: State, middle: State | None = None) -> Path:
    """Return the path of that shape from a (α = 0) to b (α = 1), both of which are exact; a curve bends over `middle`.

    Tensors are blended in float32 (float64 for float64) and rounded to their dtype. Integer and boolean tensors are
    those of a, except at α = 1. The path raises DataError if a number is NaN or infinite, naming the tensor.
    """
    if middle is None:
        return partial(_state_at, {"linear": torch.lerp, "slerp": slerp}[shape], (a, b))
    return partial(_state_at, CURVES[shape], (a, middle, b))


def linear(a: State, b: State, alpha: float) -> State:
    """Compute the point at `alpha` on the line between state dicts a and b."""
    return path_of("linear", a, b)(alpha)


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which a tensor is blended: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def require_finite(name: str, *tensors: Tensor) -> None:
    """Raise DataError if one of the tensors contains NaN or infinity."""
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"tensor {name!r} contains NaN or infinity and cannot be interpolated")


def slerp(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Compute sin((1−α)Ω)/sin Ω · a + sin(αΩ)/sin Ω · b in float64, Ω the angle between the two (Shoemake 1985).

    Parallel tensors follow the line.
    """
    first, second = a.double(), b.double()
    lengths = torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second)
    angle = torch.arccos(((first * second).sum() / lengths).clamp(-1, 1))
    sine = torch.sin(angle)
    # The angle with a tensor of zeros is NaN.
    if not sine >= COLINEAR:
        return torch.lerp(a, b, alpha)
    return torch.sin((1 - alpha) * angle) / sine * first + torch.sin(alpha * angle) / sine * second


def bezier(a: Tensor, middle: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Compute (1−α)² A + 2α(1−α) M + α² B by de Casteljau's lines, which are exact where all three agree."""
    return torch.lerp(torch.lerp(a, middle, alpha), torch.lerp(middle, b, alpha), alpha)


def polychain(a: Tensor, middle: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Compute the line from A to M up to α = 1/2, and the line from M to B after it."""
    return torch.lerp(a, middle, 2 * alpha) if alpha <= 0.5 else torch.lerp(middle, b, 2 * alpha - 1)


CURVES: dict[str, Curve] = {"bezier": bezier, "polychain": polychain}


def _state_at(blend: Callable[..., Tensor], states: Sequence[State], alpha: float) -> State:
    return {name: _tensor_at(name, blend, [state[name] for state in states], alpha) for name in states[0]}


def _tensor_at(name: str, blend: Callable[..., Tensor], tensors: Sequence[Tensor], alpha: float) -> Tensor:
    require_finite(name, *tensors)
    if alpha == 1:
        return tensors[-1]
    a = tensors[0]
    if alpha == 0 or not a.is_floating_point():
        return a
    # torch.lerp starts at the nearer end, so it is exact where both agree, like the streaming writer.
    return blend(*(tensor.to(exact_dtype(a)) for tensor in tensors), alpha).to(a.dtype)


def distances(a: State, b: State) -> list[dict[str, Any]]:
    """Return name, ‖b − a‖ and cosine of a and b for each floating-point tensor; no cosine if one is zero."""
    records = []
    for name, first, second in _flat_pairs(a, b):
        lengths = float(torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second))
        cosine = float((first * second).sum()) / lengths if lengths > 0 else None
        records.append({"name": name, "distance": float(torch.linalg.vector_norm(second - first)), "cosine": cosine})
    return records


def length(path: Path) -> float:
    """Measure a path from α = 0 to 1 by straight pieces, over all floating-point tensors."""
    total = 0.0
    before = path(0.0)
    for piece in range(1, PIECES + 1):
        after = path(piece / PIECES)
        total += math.sqrt(sum(float((y - x).square().sum()) for _, x, y in _flat_pairs(before, after)))
        before = after
    return total


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


def _flat_pairs(a: State, b: State) -> list[tuple[str, Tensor, Tensor]]:
    return [(name, t.double().flatten(), b[name].double().flatten()) for name, t in a.items() if t.is_floating_point()]


def _difference(b: State, a: State, names: list[str]) -> dict[str, Tensor]:
    return {name: b[name].to(exact_dtype(b[name])) - a[name].to(exact_dtype(a[name])) for name in names}


def _dot(first: State, second: State) -> float:
    return sum(float((tensor.double() * second[name].double()).sum()) for name, tensor in first.items())


def _rounding(state: State, names: list[str]) -> float:
    """Return the distance by which rounding to nearest may have moved a state dict."""
    squares = [(torch.finfo(state[n].dtype).eps / 2) ** 2 * float(state[n].double().square().sum()) for n in names]
    return math.sqrt(sum(squares))
