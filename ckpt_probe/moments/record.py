"""The record of class moments: the value of every requested metric, or the reason why it has none."""

import math
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.metrics.collapse import reference_values, simplex_exists, uniformity_reference, without_simplex
from ckpt_probe.metrics.covariance import FEW_DIRECTIONS, fit_range
from ckpt_probe.metrics.entropy import renyi_name
from ckpt_probe.moments.details import Portrait, Value, portrait_of, rows_of_classes
from ckpt_probe.moments.documents import errors_of_documents
from ckpt_probe.moments.entropies.levels import NO_WEIGHTS, LevelEntropies
from ckpt_probe.moments.errors.bias import Biases
from ckpt_probe.moments.errors.design import Influences, computing_error
from ckpt_probe.moments.errors.sample import FEW_DOCUMENTS, FIXED, NO_GRADIENT, Sample
from ckpt_probe.moments.inputs import Inputs
from ckpt_probe.moments.registry import (
    LOGITS,
    MEANS,
    REFERENCES,
    SECOND_PASS,
    TRAIN_MEANS,
    UNIT_ROWS,
    WEIGHTS,
    Metric,
    Undefined,
)
from ckpt_probe.moments.selection import all_metrics


@dataclass
class RecordBuilder:
    """Values by name, and the reason for each that is None.

    Attributes:
        values: Values by name.
        reasons: Names of the values that are None, by reason.
        tensors: Values of metrics as their functions returned them, by name.
        metrics: The metrics of these names.
    """

    values: dict[str, Value] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    tensors: dict[str, float | Tensor] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)

    def put(self, name: str, value: Value | Tensor, reason: str = "undefined here") -> None:
        """Set a value; the reason is stored if it is None."""
        self.values[name] = float(value.detach()) if isinstance(value, Tensor) else value
        if value is None:
            self.reasons.setdefault(reason, []).append(name)

    def evaluate(self, inputs: Inputs, families: Collection[str], names: Collection[str] | None = None) -> None:
        """Set the values of all metrics that the inputs provide, or the reasons for their absence.

        Args:
            inputs: Inputs of the metrics.
            families: Names of families.
            names: Names of metrics in the record, if not all of the families are computed.
        """
        chosen, reasons = _chosen(inputs, families, names)
        arguments: dict[str, list[Any]] = {}
        values: dict[str, float | Tensor | None] = dict.fromkeys(chosen)
        # The inputs of all metrics come first, then the metrics.
        for name, (metric, order) in chosen.items():
            if name in reasons:
                continue
            arguments[name] = [] if metric.inputs else [inputs, order][: 2 if metric.all_orders else 1]
            try:
                for path in metric.inputs:
                    value: Any = inputs
                    for part in path.split("."):
                        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
                    value = value[order] if isinstance(value, Mapping) else value
                    if isinstance(value, str):
                        raise Undefined(value)
                    arguments[name].append(value)
            except Undefined as error:
                reasons[name] = str(error)
        for name, (metric, _) in chosen.items():
            if name not in reasons:
                try:
                    values[name] = metric.function(*arguments[name]) if metric.function else arguments[name][0]
                except Undefined as error:
                    reasons[name] = str(error)
        for name, (metric, _) in chosen.items():
            value = values[name]
            if value is not None:
                value = float(value) if metric.of_rows else value
                if metric.of_rows and inputs.sample is not None and inputs.sample.reason is None:
                    value = inputs.mean_of_rows(name, float(value))
                self.tensors[name] = value
            self.metrics[name] = metric
            self.put(name, value, reasons.get(name) or metric.absent or "undefined here")

    def finish(self) -> dict[str, Value]:
        """Return the values with `missing`: names and reasons of the values that are None, or None."""
        message = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in self.reasons.items())
        return {**self.values, "missing": message or None}


@dataclass(frozen=True)
class DetailedRecord:
    """A record and its details.

    Attributes:
        record: Values by name.
        spectra: Eigenvalues of each entropy by name.
        per_class: One record for each class that has a sample.
        portrait: Data of the drawings on the report page, or None.
        influences: Influences (m,) of the rows of the subset by name of the metric; None if no errors were requested.
    """

    record: dict[str, Value]
    spectra: dict[str, Tensor]
    per_class: list[dict[str, Value]]
    portrait: Portrait | None = None
    influences: Influences | None = None


def _chosen(
    inputs: Inputs, families: Collection[str], names: Collection[str] | None
) -> tuple[dict[str, tuple[Metric, float]], dict[str, str]]:
    """Return metrics and orders of the entropy by name in the record, and why some of these metrics are absent."""
    metrics = [
        metric
        for metric in all_metrics()
        if metric.family in families
        and (metric.function is not None or metric.inputs)
        and inputs.provided.issuperset(metric.requires)
        and (inputs.compares_means or not {MEANS, WEIGHTS} <= set(metric.requires))
    ]
    chosen, reasons = {}, {}
    for order in inputs.options.all_orders:
        prefix = "" if order == 1 else f"{renyi_name(order)}."
        for metric in metrics:
            name = f"{prefix}{metric.name}"
            if (order == 1 or metric.all_orders) and (names is None or name in names):
                chosen[name] = metric, order
                absent = [need for need in metric.requires if need in inputs.unavailable]
                reasons |= {name: inputs.unavailable[absent[0]]} if absent else {}
    return chosen, reasons


def compute_record(inputs: Inputs) -> DetailedRecord:
    """Compute all metrics of the requested families, with their errors if the inputs have a sample."""
    with torch.set_grad_enabled(inputs.sample is not None and inputs.sample.reason is None):
        return _computed(inputs)


def _computed(inputs: Inputs) -> DetailedRecord:
    record, families, counts = RecordBuilder(), inputs.options.families, inputs.scatter.counts
    occurring = int((counts > 0).sum())
    record.put("samples", inputs.samples)
    record.put("features", inputs.features)
    record.put("classes", inputs.all_classes)
    record.put("classes_present", occurring)
    record.values |= {} if inputs.documents is None else {"documents": inputs.documents.count}
    below, single = occurring - len(inputs.present), int((counts[inputs.present] == 1).sum())
    record.values |= {"classes_below_min_samples": below} if below else {}
    record.values |= {"classes_of_one_sample": single} if single else {}
    levels: dict[str, LevelEntropies] = {}
    if "sample" in families and (dead := inputs.unavailable.get(UNIT_ROWS)) is not None:
        record.put("samples_left_out", inputs.unit.left_out if inputs.unit else 0)
        record.put("route", None, dead)
        record.put("route_reason", None, dead)
    elif "sample" in families:
        levels["sample"] = inputs.sample_level
        _put_route(record, inputs.sample_level, inputs.unavailable.get(WEIGHTS, NO_WEIGHTS))
    if "class" in families and MEANS not in inputs.unavailable:
        # Without a value, each metric of the level states the reason.
        with suppress(Undefined):
            levels["class"] = inputs.class_level
    left_out = inputs.all_classes - len(inputs.present) + (levels["class"].left_out if "class" in levels else 0)
    record.put("classes_left_out", left_out)
    record.evaluate(inputs, families)
    if "alpha_req" in record.values:
        known = record.values["alpha_req"] is not None
        ranks = fit_range(len(inputs.row_eigenvalues)) if known else (None, None)
        for name, rank in zip(("alpha_req_first", "alpha_req_last"), ranks, strict=True):
            record.put(name, rank, FEW_DIRECTIONS)
    for name, level in levels.items():
        _put_sampling(record, name, level, inputs.options.all_orders)
    _put_references(record, inputs)
    influences = None if inputs.sample is None else _put_errors(record, inputs, inputs.sample)
    if not inputs.options.details:
        return DetailedRecord(record.finish(), {}, [], influences=influences)
    spectra = {
        f"{name}.{key}": values.detach() for name, level in levels.items() for key, values in level.eigenvalues.items()
    }
    if "within" in families and inputs.within_classes is not None:
        spectra |= {f"within.{label}": values.detach() for label, values in inputs.within_classes.eigenvalues.items()}
    sides = {} if MEANS in inputs.unavailable else {"means": inputs.means.detach()}
    if sides and inputs.compares_means and WEIGHTS not in inputs.unavailable:
        sides["weights"] = inputs.weights
    portrait = portrait_of(inputs.present.tolist(), sides, spectra)
    return DetailedRecord(record.finish(), spectra, rows_of_classes(inputs), portrait, influences)


def values_of(inputs: Inputs, names: Collection[str], *, gradient: bool = False) -> dict[str, float | Tensor]:
    """Return the values of the metrics of some names, as tensors with gradient if requested."""
    record = RecordBuilder()
    with torch.set_grad_enabled(gradient):
        record.evaluate(inputs, inputs.options.families, names)
    return record.tensors


def _put_errors(record: RecordBuilder, inputs: Inputs, sample: Sample) -> Influences:
    """Add the standard error and the bias of each metric, or the reasons for their absence."""
    influences: dict[str, Tensor] = {}
    without = {name: reason for reason, names in record.reasons.items() for name in names}
    of_documents = {} if inputs.documents is None else errors_of_documents(inputs.documents, inputs.reference)
    metrics = {name: metric for name, metric in record.metrics.items() if name not in of_documents}
    reasons: dict[str, str | None] = {}
    for name, metric in metrics.items():
        reasons[name] = without.get(name) or sample.reason_of(metric)
        if reasons[name] is None:
            of_rows, reasons[name] = sample.influence(metric, record.tensors[name])
            influences |= {} if of_rows is None else {name: of_rows}
    biases = Biases(metrics, record.values, inputs, values_of, influences)
    corrected = biases.influences_of_corrected()
    for name, metric in metrics.items():
        error, reason = None, reasons[name]
        if name in influences:
            error, reason = sample.stderr(float(record.values[name] or 0.0), corrected.get(name, influences[name]))
        if error is not None:
            # Accuracy, loss, calibration, and shares by means of other rows, have the usual standard error of a mean.
            by_means = {SECOND_PASS, TRAIN_MEANS} & set(metric.requires)
            other_rows = TRAIN_MEANS in by_means and inputs.nearest_train is not inputs.nearest
            linear = other_rows or (LOGITS in metric.requires and not by_means)
            factor = 1.0 if linear or name in corrected else sample.design.widening(influences[name])
            error = math.hypot(factor * error, computing_error(name, record.values))
            if (doubt := inputs.doubt(metric)) is not None:
                record.reasons.setdefault(doubt, []).append(f"{name}_stderr")
        if reason in (FIXED, NO_GRADIENT):
            without[name] = reason
        record.put(f"{name}_stderr", error, reason or "undefined here")
    for name, (bias, reason) in biases.of_metrics().items():
        if bias is None or name in without:
            record.put(f"{name}_bias", None, without.get(name) or reason or "undefined here")
        else:
            record.put(f"{name}_bias", bias)
            if reason is not None:
                record.reasons.setdefault(reason, []).append(f"{name}_bias")
    for name, numbers in of_documents.items():
        for ending, number in zip(("_stderr", "_bias"), numbers, strict=True) if name in record.metrics else ():
            record.put(f"{name}{ending}", number, without.get(name) or FEW_DOCUMENTS)
    return Influences(sample.design, influences)


def _put_route(record: RecordBuilder, level: LevelEntropies, without: str) -> None:
    record.put("samples_left_out", level.left_out)
    if level.route is None:
        record.put("route", None, without)
        record.put("route_reason", None, without)
        return
    stopped = level.estimate is not None and not level.estimate.reached
    record.put("route", level.route.name, level.route.reason)
    suffix = "; sampling stopped before the tolerance was reached" if stopped else ""
    record.put("route_reason", level.route.reason + suffix)


def _put_sampling(record: RecordBuilder, name: str, level: LevelEntropies, orders: Iterable[float]) -> None:
    """Add computing errors, number of probes and seed of a joint entropy if it was sampled."""
    if level.estimate is None:
        return
    for order in orders:
        prefix = name if order == 1 else f"{renyi_name(order)}.{name}"
        for quantity in ("entropy_joint_computing_error", "mir_computing_error"):
            if f"{prefix}.{quantity}" not in record.values:
                error = level.values[quantity][order]
                known, reason = (None, error) if isinstance(error, str) else (error, "")
                record.put(f"{prefix}.{quantity}", known, reason)
    record.put(f"{name}.probes", level.estimate.probes)
    record.put(f"{name}.seed", level.estimate.seed)


def _put_references(record: RecordBuilder, inputs: Inputs) -> None:
    """Add the values at neural collapse."""
    names = [name for family, names in REFERENCES.items() if family in inputs.options.families for name in names]
    if MEANS in inputs.unavailable:
        for name in names:
            record.put(name, None, inputs.unavailable[MEANS])
        return
    shape = inputs.means.shape
    no_simplex = "with two classes the entropies are zero" if simplex_exists(*shape) else without_simplex(*shape)
    values = {**reference_values(*shape), "reference.uniformity": uniformity_reference(*shape)}
    for name in names:
        reason = "more than two classes in one dimension" if name == "reference.uniformity" else no_simplex
        record.put(name, values[name], reason)
