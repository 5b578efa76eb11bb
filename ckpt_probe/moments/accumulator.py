"""Class moments of a stream of labelled features: accumulated in one pass, mergeable, and the inputs of all metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ckpt_probe.errors import DataError
from ckpt_probe.keywords import as_sequence, whole_number
from ckpt_probe.metrics.entropy import require_order
from ckpt_probe.metrics.rows import (
    EPSILON,
    Array,
    as_bias,
    as_labels,
    as_tensor,
    require_finite,
    where_float64_is,
    without_rounding,
)
from ckpt_probe.metrics.stochastic import FEWEST, Sampling
from ckpt_probe.moments.checks import (
    checked_block,
    checked_numbers,
    checked_precision,
    checked_weights,
    require_range,
)
from ckpt_probe.moments.class_sums import RowBlocks, Scatter
from ckpt_probe.moments.entropies.levels import Options
from ckpt_probe.moments.errors.design import RecordWithErrors
from ckpt_probe.moments.errors.sample import Sample
from ckpt_probe.moments.errors.subset import RowSubset, halves_of
from ckpt_probe.moments.inputs import Inputs
from ckpt_probe.moments.record import Value, compute_record
from ckpt_probe.moments.registry import SCATTER, UNIT_ROWS
from ckpt_probe.moments.selection import chosen_families, requirements
from ckpt_probe.moments.state import HALVES, Sums, divided_state, require_state, require_subset
from ckpt_probe.moments.unit_moments import UnitMoments

AnyRows = Callable[[], Iterable[tuple[Array, Array]]]
"""Starts a new pass over blocks of features (n, D) and labels (n,), numpy or torch, with the same rows each time."""

MEMORY = 2 * 2**30
"""Default memory budget of second moments, in bytes."""


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
        halves: Whether two accumulators receive the rows alternately within each class (documents as a unit), from
            which the bias of each metric is estimated. Their merge is the whole; they need twice the memory.
        subset: Largest number of rows that are kept for standard errors, such as 2048; 0 for none. Rows are balanced by
            class, or drawn by documents where documents are passed.
        seed: Seed of the draw of the subset.

    Raises:
        DataError: If there are fewer than two classes, or the device is MPS, which has no float64.
        UsageError: If a family or precision is unknown, or a number is not whole or is negative.
    """

    def __init__(
        self,
        classes: int | None = None,
        *,
        device: torch.device | str | None = None,
        memory: int = MEMORY,
        only: str | Iterable[str] | None = None,
        precision: str = "float64",
        halves: bool = False,
        subset: int = 0,
        seed: int = 0,
    ):
        self.precision, self._dtype = precision, checked_precision(precision)
        self.classes = None if classes is None else whole_number("classes", classes)
        if self.classes is not None and self.classes < 2:
            raise DataError(f"neural collapse and mutual information need at least two classes, found {classes}")
        self.memory = whole_number("memory", memory, 0)
        size, seed = whole_number("subset", subset, 0), whole_number("seed", seed)
        if self.classes is not None and (needed := 8 * self.classes) > (limit := max(self.memory, MEMORY)):
            raise DataError(
                f"`classes={self.classes}`: the counts of these classes would take {needed:,} bytes, more than the "
                f"memory budget of {limit:,}"
            )
        self.families = chosen_families(only)
        self._requirements = requirements(self.families)
        self.device = torch.device(device) if device is not None else None
        if self.device is not None and self.device.type == "mps":
            raise DataError("moments are kept in float64, which MPS lacks: omit device, or pass device='cpu'")
        self.halves = halves
        self.subset = RowSubset(size, seed) if size else None
        self._parts: list[Sums] = []
        self._merged: Scatter | None = None
        self._before = torch.zeros(0, dtype=torch.int64)  # rows of each class that another accumulator has

    @property
    def samples(self) -> int:
        """Return the number of rows, including rows of zero length."""
        return sum(int(part.scatter.counts.sum()) for part in self._parts)

    @property
    def features(self) -> int | None:
        """Return the number of features D, or None before the first block."""
        return self._parts[0].scatter.means.shape[1] if self._parts else None

    @property
    def counts(self) -> dict[int, int]:
        """Return the number of rows of each class that occurs."""
        return {label: count for label, count in enumerate(self._counts().tolist()) if count}

    @property
    def class_means(self) -> Tensor:
        """Return the class means, (C, D) float64; rows of NaN for classes without a sample."""
        return self.means_of_classes(1)

    def means_of_classes(self, least: int) -> Tensor:
        """Return the class means, (C, D) float64; rows of NaN for classes with fewer than `least` samples."""
        scatter = self._scatter()
        more = (self.classes or len(scatter.counts)) - len(scatter.counts)
        means = torch.nn.functional.pad(scatter.means * scatter.unit, (0, 0, 0, more), value=torch.nan)
        means[: len(scatter.counts)][scatter.counts < least] = torch.nan
        return means

    @property
    def mean(self) -> Tensor:
        """Return the mean of all rows, (D,) float64."""
        scatter = self._scatter()
        return scatter.counts.to(torch.float64) @ scatter.means / scatter.counts.sum() * scatter.unit

    def centred(self, features: Array, half: int | None = None) -> Tensor:
        """Return rows (n, D) minus the mean of all rows, in the unit of the moments, float64 on their device.

        Rows that are no longer than the rounding of the mean become zero.

        Args:
            features: Rows, (n, D).
            half: 0 or 1 for the mean of this half in place of that of all rows.
        """
        scatter = self._scatter() if half is None else self._parts[half].scatter
        rows = where_float64_is(as_tensor(features, "features").detach()).to(self.device, torch.float64)
        shares = scatter.counts.to(torch.float64) / scatter.counts.sum()
        length = float((shares * scatter.lengths.square()).sum().sqrt())
        return without_rounding(rows / scatter.unit - shares @ scatter.means, self.samples * EPSILON * length)

    def update(
        self,
        features: Array,
        labels: Array | Sequence[int],
        indices: Array | Sequence[int] | None = None,
        documents: Array | Sequence[int] | None = None,
    ) -> None:
        """Add a block of rows. If it is invalid, the accumulator does not change.

        Args:
            features: Features, (n, D), of any floating dtype.
            labels: Labels, (n,), whole numbers.
            indices: Absolute indices of the rows, (n,), which decide the rows of the subset; the positions in the
                stream if None. Accumulators that are merged later need them, for their subset to be that of one pass.
            documents: Documents of the rows, (n,), whole numbers, where rows of one document depend on each other.

        Raises:
            DataError: If a row contains NaN or infinity, a label is outside 0 … C−1, or shapes do not match. Numbers
                of rows in the message count from the first block.
        """
        rows, numbers, size = checked_block(features, labels, self.features, self.device, self.samples)
        require_range(numbers, self.classes, rows.shape[1], max(self.memory, MEMORY), self.samples)
        if not rows.shape[0]:
            return
        positions = checked_numbers(indices, "indices", len(rows))
        owners = checked_numbers(documents, "documents", len(rows))
        halves = halves_of(numbers, owners, [self._counts(), self._before]) if self.halves else None
        if self.subset is not None:
            if positions is None:
                positions = torch.arange(self.samples, self.samples + len(rows))
            of_rows = torch.zeros_like(numbers) if halves is None else halves
            self.subset.update(rows, numbers, positions, of_rows, owners)
        parts = self._started(rows.shape[1], rows.device)
        if halves is None:
            parts[0].add(rows, numbers, size, self.classes)
            return
        # Sorted by half and class at once, so that each row is copied once.
        order = torch.argsort(halves * (numbers.max() + 1) + numbers, stable=True)
        rows, numbers, first = rows.index_select(0, order), numbers[order], len(rows) - int(halves.sum())
        parts[0].add(rows[:first], numbers[:first], size, self.classes)
        parts[1].add(rows[first:], numbers[first:], size, self.classes)

    def follow(self, labels: Array | Sequence[int]) -> None:
        """Divide rows into halves as if rows of some labels (n,), which another accumulator has, had come before."""
        self._before = torch.bincount(as_labels(labels).to(torch.int64).cpu())

    def merge(self, other: "Moments") -> None:
        """Add the rows of another accumulator.

        Raises:
            DataError: If the number of features or classes, the families of metrics, or halves or subset differ.
        """
        if not other._parts:
            return
        if self.families != other.families:
            raise DataError("moments for different families of metrics cannot be merged")
        if self.features is not None and self.features != other.features:
            raise DataError(f"moments of {self.features} features cannot be merged with moments of {other.features}")
        if self.classes != other.classes:
            raise DataError(f"moments of {self.classes} classes cannot be merged with moments of {other.classes}")
        if self.halves and not other.halves:
            raise DataError("moments without halves cannot be merged into moments with halves")
        if self.subset is not None:
            if other.subset is None:
                raise DataError("moments without a subset of rows cannot be merged into moments with a subset")
            self.subset.merge(other.subset)
        device = self.device or other._parts[0].scatter.counts.device
        parts = self._started(other._parts[0].scatter.means.shape[1], device)
        for number, part in enumerate(other._parts):
            parts[number if self.halves else 0].merge(part)

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
        errors: bool = False,
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
            errors: Whether to add `NAME_stderr` and `NAME_bias` for each metric; needs `subset` and `halves`.

        Returns:
            Values by name; with `errors` a dictionary whose attribute `influences` serves `difference`. A value that is
            undefined is None, with the reason in `missing`; `route` and `route_reason` name and explain the computation
            of the joint entropy.

        Raises:
            DataError: If no rows were added, shapes do not match, or most rows have zero length.
        """
        names = as_sequence(only)
        chosen = self.families if only is None else chosen_families(names) if names else frozenset()
        options = Options(
            tuple(as_sequence(orders) or ()), self.memory, sampling or Sampling(), chosen, min_samples, exact_limit
        )
        inputs = self.inputs(weights, bias, options, rows=rows, label_rows=label_rows, errors=errors)
        detailed = compute_record(inputs)
        return RecordWithErrors(detailed.record, detailed.influences) if errors else detailed.record

    def inputs(
        self,
        weights: Array | None = None,
        bias: Array | None = None,
        options: Options | None = None,
        *,
        rows: AnyRows | None = None,
        label_rows: Array | None = None,
        errors: bool = False,
    ) -> Inputs:
        """Return the inputs of metrics, from which `compute_record` computes the record and its details.

        Args:
            weights: Classifier weights, (C, D).
            bias: Classifier bias, (C,).
            options: Options of the record, whose families are computed as far as they were accumulated; all if None.
                Its memory budget is that of this object.
            rows: Starts a new pass over the same rows.
            label_rows: Rows (C, E) of any width that stand for the labels at sample level in place of `weights`.
            errors: Whether the record gets standard errors and biases.

        Raises:
            DataError: As `compute`.
        """
        sums = self._sums()
        options = options or Options(families=self.families)
        options = replace(options, memory=self.memory, families=self.families & options.families)
        for order in options.orders:
            require_order(order, "orders")
        highest = max(self.counts)
        heads = checked_weights(weights, self.features, self.classes, highest, self.device)
        if heads is not None and bias is not None:
            bias = as_bias(bias, len(heads))
        other_rows = checked_weights(label_rows, None, self.classes, highest, self.device)
        classes = self.classes or (len(sums.scatter.counts) if heads is None else len(heads))
        blocks = None if rows is None else _as_tensors(rows)

        def inputs_of(part: Sums, present: Tensor | None = None, blocks: RowBlocks | None = None) -> Inputs:
            of_part = options
            if present is not None:
                # The bias needs far fewer digits than the value: parts of the rows are sampled by the fewest probes.
                of_part = replace(options, sampling=replace(options.sampling, probes=FEWEST), details=False)
            return Inputs(
                part.scatter,
                part.unit,
                heads,
                label_rows=other_rows,
                blocks=blocks,
                options=of_part,
                all_classes=classes,
                present=present,
            )

        if not errors:
            return inputs_of(sums, blocks=blocks)
        sample = Sample.of(self.subset, sums.scatter.counts, options.min_samples)
        sample.head = heads, None if bias is None else as_tensor(bias).detach().to(self.device, torch.float64)
        inputs = inputs_of(sums if sample.reason else sums.along(sample), blocks=blocks)
        inputs.sample = sample
        if self.halves:
            inputs.halves = lambda: [inputs_of(part, inputs.present) for part in self._parts]
            inputs.halves_along = lambda: [
                inputs_of(part.along_half(sample, number), inputs.present) for number, part in enumerate(self._parts)
            ]
        inputs.of_rows = lambda rows, labels: inputs_of(self._sums_of(rows, labels), inputs.present)
        return inputs

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that was accumulated as tensors by name, for `load_state_dict` on any device.

        As there are only tensors, safetensors can store them, and loading them needs no pickle.

        Raises:
            DataError: If there was no row.
        """
        sums = self._sums()
        state = sums.state()
        if self.halves:
            for prefix, part in zip(HALVES, self._parts, strict=True):
                state |= {prefix + name: tensor for name, tensor in part.state().items()}
        return state if self.subset is None else state | self.subset.state()

    def reset(self) -> None:
        """Remove all rows, and continue with the same settings."""
        self._parts, self._merged, self._before = [], None, torch.zeros(0, dtype=torch.int64)
        if self.subset is not None:
            self.subset = RowSubset(self.subset.size, self.subset.seed)

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Replace everything that was accumulated by the result of `state_dict` of an accumulator with equal settings.

        The tensors become part of this accumulator. Without halves or a subset in the state, this accumulator has none
        either.

        Args:
            state: Tensors or arrays by name, on any device.

        Raises:
            DataError: If a tensor is missing, or has another dtype or shape than expected.
        """
        tensors = {name: as_tensor(value, f"moments: {name}").to(self.device) for name, value in state.items()}
        subset, total, halves = divided_state(tensors)
        self.halves = self.halves and bool(halves)
        states = halves if self.halves else [total]
        for each in [total, *halves]:
            require_state(each, self.classes, self._requirements)
        require_subset(subset, total)
        self.reset()
        if self.subset is not None and subset:
            self.subset.load(subset)
        elif not subset:
            self.subset = None
        self.device = self.device or total["means"].device
        for part, tensors in zip(self._started(total["means"].shape[1], self.device), states, strict=True):
            part.load(tensors)

    load = load_state_dict
    """Earlier name of `load_state_dict`."""

    def _started(self, features: int, device: torch.device) -> list[Sums]:
        self.device, self._merged = self.device or device, None
        if not self._parts:
            self._parts = [self._empty(features, self.device) for _ in range(2 if self.halves else 1)]
        return self._parts

    def _empty(self, features: int, device: torch.device) -> Sums:
        scatter = Scatter(features, device, products=SCATTER in self._requirements, dtype=self._dtype)
        if UNIT_ROWS not in self._requirements:
            return Sums(scatter, None)
        return Sums(scatter, UnitMoments(features, self.classes, self.memory, device, self._dtype))

    def _sums_of(self, rows: Tensor, labels: Tensor) -> Sums:
        """Return the sums of other rows."""
        part = self._empty(rows.shape[1], rows.device)
        part.add(rows, labels.to(rows.device), require_finite(rows, "features"), self.classes)
        return part

    def _counts(self) -> Tensor:
        """Return the number of rows of each class, (C,)."""
        counts = [part.scatter.counts for part in self._parts]
        return torch.nn.utils.rnn.pad_sequence(counts).sum(dim=1) if counts else torch.zeros(0, dtype=torch.int64)

    def _scatter(self) -> Scatter:
        """Return the counts, means and scatter of all rows."""
        self._require_rows()
        if len(self._parts) == 1:
            return self._parts[0].scatter
        if self._merged is None:
            assert self.device is not None
            merged = self._empty(self._parts[0].scatter.means.shape[1], self.device).scatter
            for part in self._parts:
                merged.merge(part.scatter)
            self._merged = merged
        return self._merged

    def _sums(self) -> Sums:
        """Return the sums of all rows; with halves the unit rows are a copy."""
        scatter = self._scatter()
        if len(self._parts) == 1:
            return self._parts[0]
        unit = self._empty(scatter.means.shape[1], scatter.means.device).unit
        for part in self._parts:
            if unit is not None and part.unit is not None:
                unit.merge(part.unit)
        return Sums(scatter, unit)

    def _require_rows(self) -> None:
        if not self.samples:
            raise DataError("no samples were added, so there is nothing to compute; call update first")


def _as_tensors(rows: AnyRows) -> RowBlocks:
    return lambda: ((as_tensor(features, "features"), as_labels(labels)) for features, labels in rows())
