"""Compute class-level metrics from classifier weights alone, for every checkpoint of a series."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from ckpt_probe.analysis.cache import Cache
from ckpt_probe.analysis.entries import Record, in_order
from ckpt_probe.analysis.records import Records
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.checkpoints import Checkpoint, Member, likely_heads, open_checkpoint, open_series
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.keywords import as_sequence, checked_keywords
from ckpt_probe.metrics import collapse, effective_rank, matrix_entropy, reference_values
from ckpt_probe.metrics.entropy import renyi_name
from ckpt_probe.metrics.gram import Array, to_rows
from ckpt_probe.metrics.theory import simplex_exists, without_simplex
from ckpt_probe.moments import DetailedRecord
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.series import step_warnings


@checked_keywords
def weights(
    path: Path | str,
    *,
    classifier: str | None = None,
    orders: float | Sequence[float] = (),
    state_key: str | None = None,
    base: Path | str | None = None,
    cache: bool = False,
    progress: Progress | None = None,
) -> Records:
    """Return the record of classifier weights alone for every checkpoint of a series; needs neither model nor data.

    Only the weights of the classifier are read of each checkpoint.

    Args:
        path: Checkpoint of any format, or a directory of checkpoints.
        classifier: Name of the layer, or of its tensor of weights; if None, the one in the checkpoint's metadata, else
            the likeliest by names and shapes.
        orders: Rényi orders of entropies that are computed beside those of order 1.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint onto which an adapter is merged.
        cache: Whether to keep the records in a hidden directory beside the checkpoints, and to read them from it if
            neither the weights nor the arguments have changed.
        progress: Receives messages and a bar.

    Returns:
        One record per checkpoint, by step, each computed on first access: the values of `weights_record`, and
        `classifier`, the name of the tensor.

    Raises:
        DataError: If a checkpoint cannot be opened, has no such tensor, or none that looks like a classifier's.
        UsageError: If an argument is invalid.
    """
    settings = Settings(orders=as_sequence(orders) or ())
    return Records(_records(path, classifier, settings, state_key, base, cache, progress or NullProgress()))


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


def _records(
    path: Path | str,
    classifier: str | None,
    settings: Settings,
    state_key: str | None,
    base: Path | str | None,
    cache: bool,
    progress: Progress,
) -> Iterator[Record]:
    path, base = resolve(path), resolve(base)
    members = open_series(path, state_key=state_key, base=base)
    records = Cache.of(settings, ["weights"]) if cache else None
    tensor: str | None = None
    warnings = dict.fromkeys(step_warnings(members))
    with progress.task("checkpoints", len(members), "checkpoints") as bar:
        for member in members:
            with open_checkpoint(member.path, state_key=state_key, base=base) as checkpoint:
                if tensor is None:
                    tensor = _chosen(checkpoint, classifier, progress)
                record, warning = _record(member, checkpoint, tensor, settings, records)
            warnings |= {warning: None} if warning else {}
            yield record
            bar.advance()
    for warning in warnings:
        progress.message(warning)


def _record(
    member: Member, checkpoint: Checkpoint, name: str, settings: Settings, cache: Cache | None
) -> tuple[Record, str | None]:
    """Return the record of one checkpoint, and a warning if it could not be written into the cache."""
    matrix = _matrix(checkpoint, name)
    content = hashlib.sha256(matrix.detach().double().contiguous().numpy().tobytes()).hexdigest()
    entry = warning = None
    if cache is not None:
        try:
            entry = cache.entry(checkpoint.file, content)
        except DataError as error:
            warning = f"records are not cached: {error}"
    if entry is not None and (cached := entry.read()):
        record = cached[0].record
    else:
        try:
            record = weights_record(matrix, orders=settings.orders)
        except DataError as error:
            raise DataError(f"{checkpoint.path}: {name}: {error}") from error
        if entry is not None:
            warning = entry.write([DetailedRecord(record, {}, [])])
    position = {"checkpoint": member.name, "step": member.step, "classifier": name}
    return in_order({**position, **record}), warning


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
    if flat.ndim != 2 or not flat.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DataError(
            f"{checkpoint.path}: {name} is {kind} of shape {tuple(tensor.shape)}, where classifier weights (C, D) of "
            "floating numbers are expected; choose another by `classifier=`"
        )
    return flat
