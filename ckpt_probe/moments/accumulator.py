"""Class moments of a stream of labelled features: accumulated in one pass, mergeable, and the inputs of all metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.keywords import as_sequence, checked_keywords
from ckpt_probe.metrics.arrays import as_labels, as_tensor
from ckpt_probe.metrics.entropy import require_order
from ckpt_probe.metrics.gram import Array, require_finite, where_float64_is
from ckpt_probe.metrics.rounding import rounding, without_rounding
from ckpt_probe.metrics.stochastic import Sampling
from ckpt_probe.moments.class_sums import LOOP_ROWS, Scatter, UnitMoments
from ckpt_probe.moments.entropies import Options
from ckpt_probe.moments.grouping import RowBlocks, cached_rows, group
from ckpt_probe.moments.inputs import Inputs
from ckpt_probe.moments.record import DetailedRecord, Value, compute_record
from ckpt_probe.moments.registry import SCATTER, UNIT_ROWS, chosen_families, requirements
from ckpt_probe.moments.state import load_unit_moments, require_state, state_of_unit_moments

AnyRows = Callable[[], Iterable[tuple[Array, Array]]]
"""Starts a new pass over blocks of features (n, D) and labels (n,), numpy or torch, with the same rows each time."""

MEMORY = 2 * 2**30
"""Default memory budget of second moments, in bytes."""

BLOCKS_AT_ONCE = 8
"""With many classes, this number of cached blocks is sorted together, so that each has more rows per class."""

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


class Moments:
    """Accumulates labelled features, and computes all metrics that class moments determine.

    Blocks and other accumulators can be added in any order; up to rounding, the result is that of one pass over all
    rows. In float64, it contains counts, means and the within-class scatter (C·D + D² numbers), and of the unit rows
    the rows themselves, if there are fewer than D·min(C, D), or their second moment in each class (C·D²). Therefore the
    memory does not grow with the number of rows. If C·D² numbers exceed `memory`, only the total second moment is
    stored, and metrics that need second moments by class are missing, with this reason.

    Args:
        classes: Number of classes C; None if labels can be any whole number from 0.
        device: Device of the moments; None for the device of the first block, or the CPU for blocks on MPS.
        memory: Memory budget in bytes.
        only: Families of metrics, such as ("nc1", "class"). Sums that none of them needs are not accumulated, and
            records have no other metrics. None for the default families.
        precision: "float64", or "float32" to multiply rows in single precision: half the work, about six correct
            digits. Sums over blocks, and all further computations, are in float64.

    Raises:
        DataError: If there are fewer than two classes, or the device is MPS, which has no float64.
        UsageError: If a family or precision is unknown.
    """

    @checked_keywords
    def __init__(
        self,
        classes: int | None = None,
        *,
        device: torch.device | str | None = None,
        memory: int = MEMORY,
        only: str | Iterable[str] | None = None,
        precision: str = "float64",
    ):
        if classes is not None and classes < 2:
            raise DataError(f"neural collapse and mutual information need at least two classes, found {classes}")
        self.classes = classes
        self.memory = memory
        self.families = chosen_families(only)
        self._requirements = requirements(self.families)
        self._dtype = checked_precision(precision)
        self.device = torch.device(device) if device is not None else None
        if self.device is not None and self.device.type == "mps":
            raise DataError("moments are kept in float64, which MPS lacks: omit device, or pass device='cpu'")
        self._scatter: Scatter | None = None
        self._unit: UnitMoments | None = None

    @property
    def samples(self) -> int:
        """Return the number of rows, including rows of zero length."""
        return 0 if self._scatter is None else int(self._scatter.counts.sum())

    @property
    def features(self) -> int | None:
        """Return the number of features D, or None before the first block."""
        return None if self._scatter is None else self._scatter.means.shape[1]

    @property
    def counts(self) -> dict[int, int]:
        """Return the number of rows of each class that occurs."""
        counts = [] if self._scatter is None else self._scatter.counts.tolist()
        return {label: count for label, count in enumerate(counts) if count}

    @property
    def class_means(self) -> Tensor:
        """Return the class means, (C, D) float64; rows of NaN for classes without a sample."""
        return self.means_of_classes(1)

    def means_of_classes(self, least: int) -> Tensor:
        """Return the class means, (C, D) float64; rows of NaN for classes with fewer than `least` samples."""
        scatter, _ = self._sums()
        more = (self.classes or len(scatter.counts)) - len(scatter.counts)
        means = torch.nn.functional.pad(scatter.means * scatter.unit, (0, 0, 0, more), value=torch.nan)
        means[: len(scatter.counts)][scatter.counts < least] = torch.nan
        return means

    def coincide(self, least: int) -> bool:
        """Return whether the means of all classes with at least `least` samples are equal up to rounding."""
        inputs = Inputs(self._sums()[0], None, None, options=Options(min_samples=least))
        return len(inputs.present) > 1 and not bool(inputs.means.any())

    @property
    def mean(self) -> Tensor:
        """Return the mean of all rows, (D,) float64."""
        scatter, _ = self._sums()
        return scatter.counts.to(torch.float64) @ scatter.means / scatter.counts.sum() * scatter.unit

    def centred(self, features: Array) -> Tensor:
        """Return rows (n, D) minus the mean of all rows, in the unit of the moments, float64 on their device.

        Rows that are no longer than the rounding of the mean become zero.
        """
        scatter, _ = self._sums()
        rows = where_float64_is(as_tensor(features, "features").detach()).to(self.device, torch.float64)
        shares = scatter.counts.to(torch.float64) / scatter.counts.sum()
        length = float((shares * scatter.lengths.square()).sum().sqrt())
        return without_rounding(rows / scatter.unit - shares @ scatter.means, rounding(self.samples, length))

    def update(self, features: Array, labels: Array | Sequence[int]) -> None:
        """Add a block of rows. If it is invalid, the accumulator does not change.

        Args:
            features: Features, (n, D), of any floating dtype.
            labels: Labels, (n,), whole numbers.

        Raises:
            DataError: If a row contains NaN or infinity, a label is outside 0 … C−1, or shapes do not match. Numbers
                of rows in the message count from the first block.
        """
        rows, numbers, size = self._checked(features, labels)
        if not rows.shape[0]:
            return
        scatter, unit = self._started(rows.shape[1], rows.device)
        scatter.fit(size)
        at_once = rows_at_once(rows.shape[1], max(len(scatter.counts), self.classes or 0))
        for part, labels in zip(rows.split(at_once), numbers.split(at_once), strict=True):
            block = group(part, labels)
            if len(block.rows) <= cached_rows(rows.shape[1]):
                block = block.to(torch.float64)
            scatter.update(block)
            if unit is not None:
                unit.update(block)

    def merge(self, other: "Moments") -> None:
        """Add the rows of another accumulator.

        Raises:
            DataError: If the number of features or classes, or the families of metrics, differ.
        """
        if other._scatter is None:
            return
        if self.families != other.families:
            raise DataError("moments for different families of metrics cannot be merged")
        if self.features is not None and self.features != other.features:
            raise DataError(f"moments of {self.features} features cannot be merged with moments of {other.features}")
        if self.classes != other.classes:
            raise DataError(f"moments of {self.classes} classes cannot be merged with moments of {other.classes}")
        device = self.device or other._scatter.counts.device
        scatter, unit = self._started(other._scatter.means.shape[1], device)
        scatter.merge(other._scatter)
        if unit is not None and other._unit is not None:
            unit.merge(other._unit)

    @checked_keywords
    def compute(
        self,
        weights: Array | None = None,
        bias: Array | None = None,
        *,
        rows: AnyRows | None = None,
        orders: float | Sequence[float] = (),
        sampling: Sampling | None = None,
        only: str | Iterable[str] | None = None,
        min_samples: int = 1,
        label_rows: Array | None = None,
        exact_limit: int | None = None,
    ) -> dict[str, Value]:
        """Compute the record: metrics by dotted name, entropies in nats.

        Args:
            weights: Classifier weights, (C, D). Without them, metrics that need them are None.
            bias: Classifier bias, (C,); no entropy depends on it.
            rows: Starts a new pass over the same rows, for metrics that the moments do not determine.
            orders: Orders of Rényi entropies, which are added as `renyi_2.class.mir` and so on.
            sampling: Tolerance, budget and seed of sampling.
            only: Some of the metrics or families of metrics that were accumulated.
            min_samples: Classes with fewer samples are left out of metrics that use class means.
            label_rows: Rows (C, E) of any width that stand for the labels at sample level in place of `weights`.
            exact_limit: Largest side of a joint matrix that is solved exactly and not sampled; None for 12,000, or the
                side that the memory allows.

        Returns:
            Values by name. A value that is undefined is None, with the reason in `missing`; `route` and `route_reason`
            name and explain the computation of the joint entropy.

        Raises:
            DataError: If no rows were added, shapes do not match, or most rows have zero length.
        """
        return self.read(
            weights,
            bias,
            rows=rows,
            orders=as_sequence(orders) or (),
            sampling=sampling,
            only=only,
            min_samples=min_samples,
            label_rows=label_rows,
            exact_limit=exact_limit,
        ).record

    def read(
        self,
        weights: Array | None = None,
        bias: Array | None = None,
        *,
        rows: AnyRows | None = None,
        orders: Sequence[float] = (),
        sampling: Sampling | None = None,
        details: bool = False,
        only: str | Iterable[str] | None = None,
        min_samples: int = 1,
        label_rows: Array | None = None,
        exact_limit: int | None = None,
    ) -> DetailedRecord:
        """Compute the record and its details, with the arguments of `inputs`."""
        inputs = self.inputs(
            weights,
            bias,
            rows=rows,
            orders=orders,
            sampling=sampling,
            details=details,
            only=only,
            min_samples=min_samples,
            label_rows=label_rows,
            exact_limit=exact_limit,
        )
        return compute_record(inputs)

    def inputs(
        self,
        weights: Array | None = None,
        bias: Array | None = None,
        *,
        rows: AnyRows | None = None,
        orders: Sequence[float] = (),
        sampling: Sampling | None = None,
        details: bool = False,
        only: str | Iterable[str] | None = None,
        min_samples: int = 1,
        label_rows: Array | None = None,
        exact_limit: int | None = None,
    ) -> Inputs:
        """Return the inputs of metrics, from which `compute_record` computes the record and its details.

        Args:
            weights: Classifier weights, (C, D).
            bias: Classifier bias, (C,).
            rows: Starts a new pass over the same rows.
            orders: Orders of Rényi entropies, which are added as `renyi_2.class.mir` and so on.
            sampling: Tolerance, budget and seed of sampling.
            details: Whether to compute eigenvalues, numbers per class and the portrait.
            only: Some of the families of metrics that were accumulated.
            min_samples: Classes with fewer samples are left out of metrics that use class means.
            label_rows: Rows (C, E) of any width that stand for the labels at sample level in place of `weights`.
            exact_limit: Largest side of a joint matrix that is solved exactly and not sampled; None for 12,000, or the
                side that the memory allows.

        Raises:
            DataError: As `compute`.
        """
        scatter, unit = self._sums()
        for order in orders:
            require_order(order)
        heads = _checked_weights(weights, bias, self)
        classes = self.classes or (heads.shape[0] if heads is not None else len(scatter.counts))
        families = self.families
        if only is not None:
            names = as_sequence(only)
            families = families & chosen_families(names) if names else frozenset()
        options = Options(
            tuple(orders), self.memory, sampling or Sampling(), families, min_samples, exact_limit, details
        )
        blocks = None if rows is None else _as_tensors(rows)
        other_rows = None if label_rows is None else _checked_rows(label_rows, self, None)
        return Inputs(scatter, unit, heads, label_rows=other_rows, blocks=blocks, options=options, all_classes=classes)

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that was accumulated as tensors by name, for `load_state_dict` on any device.

        As there are only tensors, safetensors can store them, and loading them needs no pickle.

        Raises:
            DataError: If there was no row.
        """
        scatter, unit = self._sums()
        return scatter.state() | ({} if unit is None else state_of_unit_moments(unit))

    def reset(self) -> None:
        """Remove all rows, and continue with the same settings."""
        self._scatter = self._unit = None

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Replace everything that was accumulated by the result of `state_dict` of an accumulator with equal settings.

        The tensors become part of this accumulator.

        Args:
            state: Tensors or arrays by name, on any device.

        Raises:
            DataError: If a tensor is missing, or has another dtype or shape than expected.
        """
        tensors = {name: as_tensor(value, f"moments: {name}").to(self.device) for name, value in state.items()}
        require_state(tensors, self.classes, self._requirements)
        self._scatter = self._unit = None
        self.device = self.device or tensors["means"].device
        scatter, unit = self._started(tensors["means"].shape[1], self.device)
        scatter.load(tensors)
        if unit is not None:
            load_unit_moments(unit, tensors)

    load = load_state_dict
    """Earlier name of `load_state_dict`."""

    def _started(self, features: int, device: torch.device) -> tuple[Scatter, UnitMoments | None]:
        self.device = self.device or device
        if self._scatter is None:
            products = SCATTER in self._requirements
            self._scatter = Scatter(features, self.device, products=products, dtype=self._dtype)
            if UNIT_ROWS in self._requirements:
                self._unit = UnitMoments(features, self.classes, self.memory, self.device, self._dtype)
        return self._scatter, self._unit

    def _sums(self) -> tuple[Scatter, UnitMoments | None]:
        if self._scatter is None:
            raise DataError("no samples were added, so there is nothing to compute; call update first")
        return self._scatter, self._unit

    def _checked(self, features: Array, labels: Array | Sequence[int]) -> tuple[Tensor, Tensor, float]:
        """Return rows, labels, and the largest absolute entry of the rows."""
        rows, numbers = as_tensor(features, "features"), as_labels(labels)
        if rows.ndim != 2 or numbers.ndim != 1 or rows.shape[0] != numbers.shape[0]:
            shapes = f"{tuple(rows.shape)} and {tuple(numbers.shape)}"
            raise DataError(f"features and labels: expected (n, D) and (n,), found {shapes}")
        if self.features is not None and rows.shape[1] != self.features:
            raise DataError(f"features: this block has {rows.shape[1]} columns, earlier blocks had {self.features}")
        if numbers.dtype == torch.bool:
            raise DataError(f"labels: expected whole numbers, found {numbers.dtype}")
        rows = where_float64_is(rows.detach())
        self.device = self.device or rows.device
        rows, numbers = rows.to(self.device), numbers.to(self.device, torch.int64)
        size = require_finite(rows, "features", self.samples)
        self._require_range(numbers)
        return rows, numbers, size

    def _require_range(self, numbers: Tensor) -> None:
        highest = self.classes - 1 if self.classes is not None else None
        outside = numbers < 0 if highest is None else (numbers < 0) | (numbers > highest)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            allowed = "at least 0" if highest is None else f"between 0 and {highest}"
            raise DataError(f"labels: row {first + self.samples} is {int(numbers[first])}, labels must be {allowed}")


def rows_at_once(features: int, classes: int) -> int:
    """Return the number of rows that `Moments.update` sorts together; more if each class has few rows."""
    cached = cached_rows(features)
    return cached if cached >= LOOP_ROWS * classes else BLOCKS_AT_ONCE * cached


def checked_precision(name: str) -> torch.dtype:
    """Return the dtype of a precision; raise UsageError if it is unknown."""
    if name not in PRECISIONS:
        raise UsageError(f"precision: expected {' or '.join(PRECISIONS)}, found {name!r}")
    return PRECISIONS[name]


def _as_tensors(rows: AnyRows) -> RowBlocks:
    return lambda: ((as_tensor(features, "features"), as_labels(labels)) for features, labels in rows())


def _checked_weights(weights: Array | None, bias: Array | None, moments: Moments) -> Tensor | None:
    if weights is None:
        return None
    rows = _checked_rows(weights, moments, moments.features)
    shape = (rows.shape[0],) if bias is None else tuple(as_tensor(bias, "classifier bias").shape)
    if shape != (rows.shape[0],):
        raise DataError(f"classifier bias: expected shape ({rows.shape[0]},), found {shape}")
    return rows


def _checked_rows(weights: Array, moments: Moments, width: int | None) -> Tensor:
    """Return rows of classes as float64; raise DataError if they do not match the classes or a width."""
    rows = where_float64_is(as_tensor(weights, "classifier weights").detach()).to(moments.device, torch.float64)
    if rows.ndim != 2 or width not in (None, rows.shape[1]):
        expected = f"(classes, {width or 'features'})"
        raise DataError(f"classifier weights: expected shape {expected}, found {tuple(rows.shape)}")
    require_finite(rows, "classifier weights")
    highest = max(moments.counts)
    if highest >= rows.shape[0] or moments.classes not in (None, rows.shape[0]):
        classes = f"labels go up to {highest}" if moments.classes is None else f"there are {moments.classes} classes"
        raise DataError(f"classifier weights have {rows.shape[0]} rows, but {classes}")
    return rows
