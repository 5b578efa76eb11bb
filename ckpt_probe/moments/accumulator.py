"""Class moments of a stream of labelled features: one pass, mergeable, and every metric from them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.keywords import checked_keywords
from ckpt_probe.metrics.arrays import as_labels, as_tensor
from ckpt_probe.metrics.entropy import require_order
from ckpt_probe.metrics.gram import Array, require_finite, where_float64_is
from ckpt_probe.metrics.rounding import rounding, without_rounding
from ckpt_probe.metrics.stochastic import Sampling
from ckpt_probe.moments.grouping import Grouped, Rows, cached_rows, group
from ckpt_probe.moments.inputs import Inputs
from ckpt_probe.moments.levels.entropies import Options
from ckpt_probe.moments.outer_products import symmetric
from ckpt_probe.moments.record import DetailedRecord, Value, compute_record
from ckpt_probe.moments.registry import SCATTER, UNIT_ROWS, chosen_families, requirements
from ckpt_probe.moments.scatter import MANY, Scatter
from ckpt_probe.moments.unit_moments import UnitMoments
from ckpt_probe.moments.validation import require_state

AnyRows = Callable[[], Iterable[tuple[Array, Array]]]
"""Gives a fresh pass over blocks of features (n, D) and labels (n,), numpy or torch, the same rows each time."""

MEMORY = 2 * 2**30
"""Bytes that second moments may take where a caller names no other budget."""

BLOCKS_AT_ONCE = 8
"""Cachefuls of rows that are sorted together where classes are many: the fewer of them meet a block, the less work."""

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


class Moments:
    """Accumulates labelled features (rows of D numbers); `compute` reads every metric that moments allow from them.

    `update` takes a block of rows, `merge` another accumulator, in any order and number: the result is that of one
    pass over all rows, up to rounding. Kept, in float64: counts, means and the within-class scatter (C·D + D²), and
    of the unit rows either the rows themselves, while there are fewer than D·min(C, D), or their second moment in
    each class (C·D²). Memory therefore does not grow with the number of rows. Where C·D² is over `memory` bytes only
    the total second moment is kept, and what needs the classes' own is missing, with the reason.

    classes: number of classes; where None, labels may be any whole number ≥ 0. device: where the moments live, that
    of the first block where None; the CPU for blocks on MPS, which has no float64. only: families of metrics, such as
    ("nc1", "class"): what none of them needs is not accumulated, and the record has no others; the usual ones where
    None. precision: "float32" multiplies rows in single precision, which halves the work and leaves about six digits;
    sums over blocks, and everything that is read from them, stay in float64. Raises DataError for fewer than two
    classes, and for MPS as the device, UsageError for a family or precision that there is not.
    """

    @checked_keywords
    def __init__(
        self,
        classes: int | None = None,
        *,
        device: torch.device | str | None = None,
        memory: int = MEMORY,
        only: Iterable[str] | None = None,
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
        """Rows seen so far, those of zero length included."""
        return 0 if self._scatter is None else int(self._scatter.counts.sum())

    @property
    def features(self) -> int | None:
        """D, None before the first block."""
        return None if self._scatter is None else self._scatter.means.shape[1]

    @property
    def counts(self) -> dict[int, int]:
        """Rows seen of each class that has any."""
        counts = [] if self._scatter is None else self._scatter.counts.tolist()
        return {label: count for label, count in enumerate(counts) if count}

    @property
    def class_means(self) -> Tensor:
        """Mean feature of each class, (C, D) float64; rows of NaN for classes without a sample."""
        return self.means_of_classes(1)

    def means_of_classes(self, least: int) -> Tensor:
        """As `class_means`, with rows of NaN for classes of fewer than `least` samples too."""
        scatter, _ = self._seen()
        more = (self.classes or len(scatter.counts)) - len(scatter.counts)
        means = torch.nn.functional.pad(scatter.means * scatter.unit, (0, 0, 0, more), value=torch.nan)
        means[: len(scatter.counts)][scatter.counts < least] = torch.nan
        return means

    def coincide(self, least: int) -> bool:
        """Return whether all means of the classes of at least `least` samples are the same but for rounding."""
        inputs = Inputs(self._seen()[0], None, None, options=Options(min_samples=least))
        return len(inputs.present) > 1 and not bool(inputs.means.any())

    @property
    def mean(self) -> Tensor:
        """Mean feature over all rows, (D,) float64."""
        scatter, _ = self._seen()
        return scatter.counts.to(torch.float64) @ scatter.means / scatter.counts.sum() * scatter.unit

    def centred(self, features: Array) -> Tensor:
        """Return rows (n, D) less the mean over all rows, in the unit of the moments, float64 on their device.

        Rows that are no longer than the rounding of that mean are zero.
        """
        scatter, _ = self._seen()
        rows = where_float64_is(as_tensor(features, "features").detach()).to(self.device, torch.float64)
        shares = scatter.counts.to(torch.float64) / scatter.counts.sum()
        length = float((shares * scatter.lengths.square()).sum().sqrt())
        return without_rounding(rows / scatter.unit - shares @ scatter.means, rounding(self.samples, length))

    def update(self, features: Array, labels: Array | Sequence[int]) -> None:
        """Add a block: features (n, D) of any floating dtype, labels (n,) whole numbers.

        Raises DataError for NaN or infinity (how many rows, the first one), for labels outside 0 … C−1 (the first
        one), and where shapes do not fit; the accumulator is then unchanged. Row numbers count from the first block.
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
        """Add what another accumulator has seen. Raises DataError where D or C differ, naming both."""
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

    def compute(
        self, weights: Array | None = None, bias: Array | None = None, *, rows: AnyRows | None = None, **options: Any
    ) -> dict[str, Value]:
        """The record of these moments: dotted metric names to numbers (nats where entropies), None where undefined.

        weights: classifier weights (C, D); without them what needs them is None. bias (C,) is accepted beside them
        and enters no entropy. rows: gives the same rows once more, for what their moments do not hold (see `AnyRows`).
        options: those of `read`. `missing` holds the reasons for what is None, one string; `route` names how the joint
        entropy was computed, `route_reason` why. Raises DataError where nothing was added, shapes do not fit, or rows
        have no direction.
        """
        return self.read(weights, bias, rows=rows, **options).record

    def read(
        self,
        weights: Array | None = None,
        bias: Array | None = None,
        *,
        rows: AnyRows | None = None,
        orders: Sequence[float] = (),
        sampling: Sampling | None = None,
        details: bool = False,
        only: Iterable[str] | None = None,
        min_samples: int = 1,
        label_rows: Array | None = None,
        exact_limit: int | None = None,
    ) -> DetailedRecord:
        """The record with what is behind it: eigenvalues and per-class numbers, where `details` asks for them.

        orders: Rényi's, whose entropies join the record as `renyi_2.class.mir` and so on. sampling: tolerance, budget
        and seed of the stochastic route. only: some of the families that were accumulated. min_samples: rows that a
        class needs, to be part of what is read from class means. label_rows: (C, E), of any width, what stands for the
        labels at sample level in place of weights. exact_limit: largest side of a joint matrix that is solved and
        not sampled (None: 12,000, or as memory allows). Values and errors as `compute`.
        """
        scatter, unit = self._seen()
        for order in orders:
            require_order(order)
        heads = _checked_weights(weights, bias, self)
        classes = self.classes or (heads.shape[0] if heads is not None else len(scatter.counts))
        families = self.families
        if only is not None:
            names = tuple(only)
            families = families & chosen_families(names) if names else frozenset()
        options = Options(
            tuple(orders), self.memory, sampling or Sampling(), families, min_samples, exact_limit, details
        )
        again = None if rows is None else _as_tensors(rows)
        named = None if label_rows is None else _checked_rows(label_rows, self, None)
        inputs = Inputs(scatter, unit, heads, label_rows=named, blocks=again, options=options)
        return compute_record(inputs, classes)

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that was accumulated as tensors by name, for `load_state_dict` on any device.

        As there are only tensors, safetensors can store them, and loading them needs no pickle.

        Raises:
            DataError: If there was no row.
        """
        scatter, unit = self._seen()
        state = scatter.state()
        if unit is None:
            return state
        state |= {"unit_counts": unit.counts.clone(), "left_out": torch.tensor(unit.left_out)}
        if unit.kind == "rows":
            held = unit.all_rows() if unit.rows else Grouped(scatter.means[:0], scatter.counts[:0], scatter.counts[:0])
            return {**state, "rows": held.rows, "row_labels": held.labels[held.each()]}
        return {**state, "second" if unit.kind == "classes" else "total": symmetric(unit.second)}

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
        if unit is None:
            return
        unit.counts, unit.left_out = tensors["unit_counts"], int(tensors["left_out"])
        if "rows" in tensors:
            unit.rows = [group(tensors["rows"], tensors["row_labels"])]
        else:
            unit.kind = "classes" if "second" in tensors else "total"
            unit.second = tensors["second" if "second" in tensors else "total"].contiguous()

    def _started(self, features: int, device: torch.device) -> tuple[Scatter, UnitMoments | None]:
        self.device = self.device or device
        if self._scatter is None:
            products = SCATTER in self._requirements
            self._scatter = Scatter(features, self.device, products=products, dtype=self._dtype)
            if UNIT_ROWS in self._requirements:
                self._unit = UnitMoments(features, self.classes, self.memory, self.device, self._dtype)
        return self._scatter, self._unit

    def _seen(self) -> tuple[Scatter, UnitMoments | None]:
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
        if numbers.is_floating_point() or numbers.dtype == torch.bool:
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
    """How many rows of a block `Moments.update` sorts together: more where each class has few of them."""
    cached = cached_rows(features)
    return cached if cached >= MANY * classes else BLOCKS_AT_ONCE * cached


def checked_precision(name: str) -> torch.dtype:
    """The dtype of products that a precision names. Raises UsageError for another name."""
    if name not in PRECISIONS:
        raise UsageError(f"precision: expected {' or '.join(PRECISIONS)}, found {name!r}")
    return PRECISIONS[name]


def _as_tensors(rows: AnyRows) -> Rows:
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
    """A row of `width` numbers for each class, of any width where that is None."""
    rows = where_float64_is(as_tensor(weights, "classifier weights").detach()).to(moments.device, torch.float64)
    if rows.ndim != 2 or width not in (None, rows.shape[1]):
        expected = f"(classes, {width or 'features'})"
        raise DataError(f"classifier weights: expected shape {expected}, found {tuple(rows.shape)}")
    require_finite(rows, "classifier weights")
    highest = max(moments.counts)
    if highest >= rows.shape[0] or moments.classes not in (None, rows.shape[0]):
        found = f"labels go up to {highest}" if moments.classes is None else f"there are {moments.classes} classes"
        raise DataError(f"classifier weights have {rows.shape[0]} rows, but {found}")
    return rows
