"""Compute class-level metrics from classifier weights alone."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ckpt_probe.analysis.cache import cache_key, cached_records
from ckpt_probe.analysis.entries import Record
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.checkpoints import Checkpoint, Member, likely_heads, open_checkpoint
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.metrics import collapse, effective_rank, matrix_entropy, reference_values
from ckpt_probe.metrics.collapse import simplex_exists, without_simplex
from ckpt_probe.metrics.entropy import renyi_name
from ckpt_probe.metrics.rows import Array, to_rows
from ckpt_probe.moments import DetailedRecord
from ckpt_probe.progress import Progress
from ckpt_probe.scheduling import Busy


@dataclass
class ClassifierRecords:
    """Computes the records of classifier weights of the checkpoints of a series, one after another.

    Attributes:
        classifier: Name of the layer, or of its tensor of weights; if None, the one in the checkpoint's metadata, else
            the likeliest by names and shapes.
        orders: Rényi orders of entropies that are computed beside those of order 1.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint onto which an adapter is merged.
        cache: Whether to use the cache of records.
        required: Whether weights without a record are an error; otherwise it has a reason in their place.
        warnings: Warnings about the cache.
    """

    classifier: str | None = None
    orders: tuple[float, ...] = ()
    state_key: str | None = None
    base: Path | None = None
    cache: bool = False
    required: bool = False
    warnings: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._settings = Settings(orders=self.orders)
        self._key = cache_key(self._settings, ["weights"]) if self.cache else None
        self._tensor: str | None = None
        self.required = self.required or self.classifier is not None

    def of(self, member: Member, progress: Progress) -> Record:
        """Return the record of a checkpoint: the values of `weights_record`, and the name of the tensor.

        Raises:
            DataError: If it has no such tensor, none that looks like a classifier's, or weights without a direction,
                and that is required.
            UsageError: If the named layer is not in the first checkpoint.
        """
        try:
            with open_checkpoint(member.path, state_key=self.state_key, base=self.base) as checkpoint:
                if self._tensor is None:
                    self._tensor = _chosen(checkpoint, self.classifier, progress)
                record, warning = _record(checkpoint, self._tensor, self._settings, self._key)
        except DataError as error:
            if self.required:
                raise
            reason = str(error).removeprefix(f"{member.path}: ")
            return {"classifier": self._tensor, "missing": f"class.*, nc2.*: {reason}"}
        self.warnings |= {warning: None} if warning else {}
        return {"classifier": self._tensor, **record}


def weights_record(weights: Array, *, orders: tuple[float, ...] = ()) -> Record:
    """Compute entropy, effective rank and distance to a simplex ETF of classifier weights.

    Entropies are those of the Gram matrix of the unit rows (arXiv 2409.16767), in nats. Rows of zero length have no
    direction; they are left out and counted.

    Args:
        weights: Classifier weights, shape (C, D).
        orders: Rényi orders of entropies that are computed beside those of order 1.

    Raises:
        DataError: If a weight is not finite, or fewer than two rows have a length other than zero.
    """
    rows = to_rows(weights).double()
    heads = rows[rows.any(dim=1)]
    if len(heads) < 2:
        raise DataError(f"{len(heads)} of {len(rows)} rows have a length other than zero; expected at least two")
    record: Record = {"features": rows.shape[1], "classes": len(rows), "classes_left_out": len(rows) - len(heads)}
    record["class.entropy_weights"] = float(matrix_entropy(heads))
    record["class.effective_rank_weights"] = float(effective_rank(heads))
    for order in orders:
        record[f"{renyi_name(order)}.class.entropy_weights"] = float(matrix_entropy(heads, alpha=order))
    record["nc2.equinorm_weights"] = collapse.equinorm(heads)
    record["nc2.equiangular_weights"] = collapse.equiangular(heads)
    record["nc2.etf_weights"] = collapse.etf_distance(heads)
    record["reference.entropy"] = reference_values(*heads.shape)["reference.entropy"]
    exists = simplex_exists(*heads.shape)
    return {**record, "missing": None if exists else f"reference.entropy: {without_simplex(*heads.shape)}"}


def _record(checkpoint: Checkpoint, name: str, settings: Settings, key: str | None) -> tuple[Record, str | None]:
    """Return the record of one checkpoint, and a warning if it could not be written into the cache."""
    matrix = _matrix(checkpoint, name)

    def content() -> str:
        return hashlib.sha256(matrix.detach().double().contiguous().numpy().tobytes()).hexdigest()

    def compute() -> list[DetailedRecord]:
        return [DetailedRecord(weights_record(matrix, orders=settings.orders), {}, [])]

    try:
        cached = cached_records(key, checkpoint.file, content, compute)
        if isinstance(cached, Busy):
            return compute()[0].record, None
    except DataError as error:
        raise DataError(f"{checkpoint.path}: {name}: {error}") from error
    return cached.records[0].record, cached.warning


def _chosen(checkpoint: Checkpoint, classifier: str | None, progress: Progress) -> str:
    """Return the name of the tensor of classifier weights: the named one, that in the metadata, or the likeliest."""
    likely = likely_heads(checkpoint.layout)
    if (named := classifier or checkpoint.metadata.classifier) is not None:
        tensor = next((name for name in (named, f"{named}.weight") if name in checkpoint), None)
        if tensor is None:
            hint = f"; likely heads: {listed([head.module for head in likely])}" if likely else ""
            kind = UsageError if classifier else DataError
            raise kind(f"{checkpoint.path}: no tensor {named} or {named}.weight{hint}; choose by `classifier=`")
        return tensor
    if not likely:
        raise DataError(
            f"{checkpoint.path}: no tensor looks like classifier weights; name the layer by `classifier=` "
            "(inspect lists all tensors)"
        )
    first, *others = likely
    besides = f"; others: {listed([head.module for head in others])} (`classifier=`)" if others else ""
    progress.message(f"classifier weights: {first.weight}, since it is {', '.join(first.reasons)}{besides}")
    return first.weight


def _matrix(checkpoint: Checkpoint, name: str) -> Tensor:
    tensor = checkpoint.read(name)
    flat = tensor.flatten(1) if tensor.ndim > 2 and tensor[0].numel() == tensor.shape[1] else tensor
    if flat.ndim != 2 or not flat.is_floating_point() or flat.element_size() < 2:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DataError(
            f"{checkpoint.path}: {name} is {kind} of shape {tuple(tensor.shape)}, where classifier weights (C, D) of "
            "floating numbers of at least 16 bits are expected; choose another by `classifier=`"
        )
    return flat
