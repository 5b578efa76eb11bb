"""What classifier weights alone say: class-level numbers of every checkpoint of a series, without model or data."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ckpt_probe.analysis.cache import Cache
from ckpt_probe.analysis.entries import Record, in_order
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.checkpoints import Checkpoint, Member, likely_heads, open_checkpoint, open_series
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.metrics import collapse, effective_rank, matrix_entropy, reference_values
from ckpt_probe.metrics.entropy import renyi_name
from ckpt_probe.metrics.gram import Array, to_rows
from ckpt_probe.metrics.theory import simplex_exists, without_simplex
from ckpt_probe.moments import DetailedRecord
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.series import step_warnings


@dataclass(frozen=True)
class Heads:
    """Which classifier weights are read, and from where in each checkpoint.

    classifier: the layer, or the tensor itself; where None the one that the checkpoint's own metadata name, else the
    likeliest by names and shapes. state_key, base: as `open_checkpoint`.
    """

    classifier: str | None = None
    state_key: str | None = None
    base: Path | None = None


def weights_record(weights: Array, *, orders: tuple[float, ...] = ()) -> Record:
    """Class-level numbers of classifier weights (C, D) alone: entropy, effective rank, and how near to a simplex ETF.

    Entropies in nats, of the Gram of the unit rows (arXiv 2409.16767); Rényi's of `orders` beside them. Rows of zero
    length have no direction: they are left out, and counted. Raises DataError as `matrix_entropy` does, and for fewer
    than two rows of non-zero length.
    """
    rows = to_rows(weights).double()
    heads = rows[rows.any(dim=1)]
    if len(heads) < 2:
        raise DataError(f"{len(heads)} of {len(rows)} rows have a length other than zero, where two are needed")
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


def read_weights(
    path: Path | str,
    heads: Heads | None = None,
    settings: Settings | None = None,
    *,
    cache: bool = False,
    progress: Progress | None = None,
) -> Iterator[DetailedRecord]:
    """A reading for every checkpoint at `path`, by step: its `weights_record`, with `classifier`, the tensor read.

    Of `settings` only the orders matter. Only that tensor is read of each checkpoint; with `cache` its record is kept
    in a hidden folder beside the checkpoint. Raises DataError, naming the file, where a checkpoint cannot be opened,
    has no such tensor, or has none that looks like a classifier's.
    """
    heads, settings, progress = heads or Heads(), settings or Settings(), progress or NullProgress()
    members = open_series(path, state_key=heads.state_key, base=heads.base)
    kept = Cache.of(settings, ["weights"]) if cache else None
    chosen: str | None = None
    notes = step_warnings(members)
    with progress.task("checkpoints", len(members), "checkpoints") as bar:
        for member in members:
            with open_checkpoint(member.path, state_key=heads.state_key, base=heads.base) as checkpoint:
                if chosen is None:
                    chosen = _chosen(checkpoint, heads.classifier, progress)
                reading, note = _reading(member, checkpoint, chosen, settings, kept)
            notes += [note] if note and note not in notes else []
            yield reading
            bar.advance()
    for note in notes:
        progress.message(note)


def _reading(
    member: Member, checkpoint: Checkpoint, name: str, settings: Settings, cache: Cache | None
) -> tuple[DetailedRecord, str | None]:
    weights = _matrix(checkpoint, name)
    content = hashlib.sha256(weights.detach().double().contiguous().numpy().tobytes()).hexdigest()
    entry = None if cache is None else cache.entry(checkpoint.file, content)
    if entry is not None and (cached := entry.read()):
        reading, note = cached[0], None
    else:
        try:
            reading = DetailedRecord(weights_record(weights, orders=settings.orders), {}, [])
        except DataError as error:
            raise DataError(f"{checkpoint.path}: {name}: {error}") from error
        note = None if entry is None else entry.write([reading])
    place = {"checkpoint": member.name, "step": member.step, "classifier": name}
    return DetailedRecord(in_order({**place, **reading.record}), {}, []), note


def _chosen(checkpoint: Checkpoint, classifier: str | None, progress: Progress) -> str:
    named = classifier or checkpoint.metadata.classifier
    if named is not None:
        found = [name for name in (named, f"{named}.weight") if name in checkpoint]
        if not found:
            near = [head.module for head in likely_heads(checkpoint.layout)]
            told = f"; likely heads: {listed(near)}" if near else ""
            wrong = UsageError if classifier else DataError
            raise wrong(f"{checkpoint.path}: no tensor {named} or {named}.weight{told}; choose by --classifier NAME")
        return found[0]
    likely = likely_heads(checkpoint.layout)
    if not likely:
        raise DataError(
            f"{checkpoint.path}: no tensor looks like classifier weights; name the layer by --classifier NAME "
            "(inspect lists all tensors)"
        )
    first, *others = likely
    besides = f"; others: {listed([head.module for head in others])} (--classifier NAME)" if others else ""
    progress.message(f"classifier weights: {first.weight}, since it is {', '.join(first.reasons)}{besides}")
    return first.weight


def _matrix(checkpoint: Checkpoint, name: str) -> Tensor:
    tensor = checkpoint.read(name)
    flat = tensor.flatten(1) if tensor.ndim > 2 and tensor[0].numel() == tensor.shape[1] else tensor
    if flat.ndim != 2 or not flat.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise DataError(
            f"{checkpoint.path}: {name} is {kind} of shape {tuple(tensor.shape)}, where classifier weights (C, D) of "
            "floating numbers are expected; choose another by --classifier NAME"
        )
    return flat
