"""How a path is evaluated: every option, checked before anything is opened, and before torch is loaded."""

import math
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.errors import UsageError

BENT = ("bezier", "polychain")
"""Shapes that bend over a midpoint, which is trained first."""

SHAPES = ("linear", "slerp", *BENT)

METHODS = ("permutation", "activations")
"""How B can be put in A's order: by its weights, or by what its channels do on data."""

SAMPLES = 4096
"""Training samples from which batch-norm statistics are estimated anew."""


@dataclass(frozen=True)
class Statistics:
    """Where batch-norm statistics between checkpoints come from.

    batchnorm: "recompute" estimates them anew from so many training `samples`, "interpolate" takes those in between.
    """

    batchnorm: str = "recompute"
    samples: int = SAMPLES

    def __post_init__(self) -> None:
        if self.batchnorm not in {"recompute", "interpolate"} or self.samples < 2:
            raise UsageError(
                "batchnorm: expected recompute or interpolate, with at least two samples; "
                f"found {self.batchnorm} with {self.samples} samples"
            )


@dataclass(frozen=True)
class PathOptions:
    """How a path is evaluated.

    path: "linear" or "slerp", or a curve over a trained midpoint, "bezier" or "polychain". points: spaced evenly over
    `span`, 0 and 1 always among them; None adds positions where the curves of loss and error bend until their barriers
    are known to 1 %. batchnorm: "recompute" estimates running statistics anew at each point
    between or beyond the ends, from `batchnorm_samples` training samples, "interpolate" takes those on the path.

    align: first puts b's hidden channels in a's order, "permutation" by weights, over groups derived from the model or
    those of the file `align_spec`, "activations" by the correlation of activations on `align_samples` training samples.
    curve_epochs: passes over the training data that find the midpoint; curve_learning_rate: that of a's own training
    where None; midpoint: a file with one found before. keep_dumps: also write a dump of every point.
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

    def __post_init__(self) -> None:
        if self.path not in SHAPES:
            raise UsageError(f"path: expected one of {', '.join(SHAPES)}; found {self.path}")
        _ = self.statistics
        self._check_alignment()
        self._check_curve()

    @property
    def curved(self) -> bool:
        """Whether the path bends over a midpoint."""
        return self.path in BENT

    @property
    def statistics(self) -> Statistics:
        """Where batch-norm statistics come from. Raises UsageError where they can't be had so."""
        return Statistics(self.batchnorm, self.batchnorm_samples)

    def _check_alignment(self) -> None:
        if self.align not in {None, *METHODS} or self.align_samples < 2:
            known = ", ".join(METHODS)
            raise UsageError(f"align: expected one of {known}, with at least two samples; found {self.align}")
        if self.align_spec is not None and self.align != "permutation":
            raise UsageError(
                "align_spec needs align permutation, because groups do not say which activations belong to them; "
                f"found align {self.align}"
            )

    def _check_curve(self) -> None:
        low, high = self.span
        if self.curved and (low < 0 or high > 1):
            raise UsageError(f"path {self.path} runs from 0 to 1; range {low:g}:{high:g} goes beyond")
        if self.midpoint is not None and not self.curved:
            raise UsageError(f"midpoint needs one of the paths {', '.join(BENT)}; found {self.path}")
        rate = self.curve_learning_rate
        if not all(0 < value < math.inf for value in (self.curve_epochs, 1.0 if rate is None else rate)):
            raise UsageError(
                f"curve_epochs and curve_learning_rate must be positive; found {self.curve_epochs}, {rate}"
            )
