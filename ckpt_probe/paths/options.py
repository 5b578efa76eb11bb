"""Settings of a path and of a plane, checked before anything is opened and before torch is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.errors import UsageError

BENT = ("bezier", "polychain")
"""Curves over a midpoint, which is trained first."""

SHAPES = ("linear", "slerp", *BENT)

METHODS = ("permutation", "activations")
"""Methods that put B's channels in A's order: by weights, or by activations on data."""

SAMPLES = 4096
"""Number of training samples from which batch-norm statistics are estimated."""

MARGIN = 0.2
RADIUS = 1.0


def require_statistics(batchnorm: str, samples: int) -> None:
    """Raise UsageError if the source of batch-norm statistics or the number of training samples is invalid."""
    if batchnorm not in {"recompute", "interpolate"} or samples < 2:
        expected = "batchnorm: expected recompute or interpolate, with at least two samples"
        raise UsageError(f"{expected}; found {batchnorm} with {samples} samples")


@dataclass(frozen=True)
class PathOptions:
    """Settings of a path.

    Attributes:
        path: "linear", "slerp", or a curve over a trained midpoint, "bezier" or "polychain".
        points: Number of positions, evenly spaced over `span`, and always 0 and 1; None to add positions where the
            curves of loss and error bend until their barriers are known to 1 %.
        span: First and last position.
        batchnorm: "recompute" to estimate running statistics at each position between or beyond the ends,
            "interpolate" to interpolate them.
        batchnorm_samples: Number of training samples for the estimates.
        align: Method that first puts b's hidden channels in a's order: "permutation" by weights, "activations" by the
            correlation of activations; None for none.
        align_spec: File with the groups of channels for "permutation"; None to derive them from the model.
        align_samples: Number of training samples for "activations".
        curve_epochs: Number of passes over the training data to train the midpoint.
        curve_learning_rate: Learning rate of that training; None for that of a's own training.
        midpoint: File with a midpoint trained before.
        keep_dumps: Whether to write a dump of every position.
        errors: Whether to add standard errors and biases to the record of every position, and errors to the barriers.
    """

    path: str = "linear"
    points: int | None = 11
    span: tuple[float, float] = (0.0, 1.0)
    batchnorm: str = "recompute"
    batchnorm_samples: int = SAMPLES
    align: str | None = None
    align_spec: Path | str | None = None
    align_samples: int = 1024
    curve_epochs: float = 20.0
    curve_learning_rate: float | None = None
    midpoint: Path | str | None = None
    keep_dumps: bool = False
    errors: bool = False

    def __post_init__(self) -> None:
        if self.path not in SHAPES:
            raise UsageError(f"path: expected one of {', '.join(SHAPES)}; found {self.path}")
        require_statistics(self.batchnorm, self.batchnorm_samples)
        if self.align not in {None, *METHODS} or self.align_samples < 2:
            known = ", ".join(METHODS)
            raise UsageError(f"align: expected one of {known}, with at least two samples; found {self.align}")
        if self.align_spec is not None and self.align != "permutation":
            raise UsageError(
                f"align_spec needs align permutation, as its groups name no activations; found {self.align}"
            )
        low, high = self.span
        if self.curved and (low < 0 or high > 1):
            raise UsageError(f"path {self.path} runs from 0 to 1; range {low:g}:{high:g} goes beyond")
        if self.midpoint is not None and not self.curved:
            raise UsageError(f"midpoint needs one of the paths {', '.join(BENT)}; found {self.path}")
        epochs, rate = self.curve_epochs, self.curve_learning_rate
        if not all(0 < value < math.inf for value in (epochs, 1.0 if rate is None else rate)):
            raise UsageError(f"curve_epochs and curve_learning_rate must be positive; found {epochs}, {rate}")

    @property
    def curved(self) -> bool:
        """Return whether the path is a curve over a midpoint."""
        return self.path in BENT


@dataclass(frozen=True)
class PlaneOptions:
    """Settings of a plane.

    Attributes:
        grid: Number of positions along each axis, or (along x, along y).
        margin: Extent of the grid beyond the checkpoints, as a share of their own extent.
        directions: "random" for filter-normalised directions around one checkpoint, "pca" for the two main directions
            of the trajectory of a series; None for three checkpoints.
        seed: Seed of the random directions.
        radius: Largest coordinate along random directions.
        batchnorm: "recompute" to estimate running statistics at each position, "interpolate" to interpolate them.
        batchnorm_samples: Number of training samples for the estimates.
        errors: Whether to add standard errors and biases to the record of every position.
    """

    grid: int | tuple[int, int] = 15
    margin: float = MARGIN
    directions: str | None = None
    seed: int = 0
    radius: float = RADIUS
    batchnorm: str = "recompute"
    batchnorm_samples: int = SAMPLES
    errors: bool = False

    def __post_init__(self) -> None:
        if min(self.shape) < 2:
            raise UsageError(f"grid: expected at least 2 points along each axis, found {self.grid}")
        require_statistics(self.batchnorm, self.batchnorm_samples)
        if self.directions not in {None, "random", "pca"}:
            raise UsageError(f"directions: expected random, pca or None, found {self.directions}")
        if self.directions != "random" and (self.seed, self.radius) != (0, RADIUS):
            raise UsageError("seed and radius need directions random")
        if self.directions == "random" and self.margin != MARGIN:
            raise UsageError("margin needs three checkpoints; use radius for random directions")
        if not (0 <= self.margin < math.inf and 0 < self.radius < math.inf and 0 <= self.seed < 2**63):
            raise UsageError("expected a margin of at least 0, a radius above 0, and an integer seed of at least 0")

    @property
    def shape(self) -> tuple[int, int]:
        """Number of positions along x and along y."""
        return (self.grid, self.grid) if isinstance(self.grid, int) else self.grid
