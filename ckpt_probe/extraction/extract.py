"""Extract features of checkpoints to dumps, with one forward pass per sample; finished dumps are skipped."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.addresses import as_path
from ckpt_probe.checkpoints import RepeatedWeights, open_series
from ckpt_probe.data import LEFT_OUT
from ckpt_probe.dumps import Provenance, read_provenance, require_split_name
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.extraction.forward import Block, forward_batches, lent
from ckpt_probe.extraction.plausibility import Outcome, Tally, stated_accuracies, warnings_of
from ckpt_probe.extraction.ranges import Ranges
from ckpt_probe.extraction.request import request_of
from ckpt_probe.extraction.scoring import is_scored
from ckpt_probe.extraction.setup import Setup, Storage, layer_names
from ckpt_probe.extraction.subject import SAMPLE, Subject, head_parameters, open_subject
from ckpt_probe.extraction.writer import SplitPlan, choose_rows, open_background_writer, write_split
from ckpt_probe.files import refuse_existing
from ckpt_probe.keywords import checked_keywords, from_arguments
from ckpt_probe.metrics.arrays import as_labels, as_tensor
from ckpt_probe.models import Backbone, Batch, choose_device, choose_taps, find_head, on_device, part_of
from ckpt_probe.moments import MEMORY
from ckpt_probe.moments.grouping import SUBSET_ROWS
from ckpt_probe.progress import DeduplicatedProgress, MessageLog, NullProgress, Progress, Task
from ckpt_probe.remote import resolve
from ckpt_probe.scheduling import ALONE, Busy, Team, Workers, claimed, made_once, remove_abandoned, results
from ckpt_probe.series import Member, step_warnings


@dataclass(frozen=True)
class ExtractionSummary:
    """Names of the dumps that were written, and of those that were complete already."""

    written: tuple[str, ...]
    skipped: tuple[str, ...]


@checked_keywords
def extract_series(
    source: Path | str,
    out: Path | str,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    classifier: str | None = None,
    state_key: str | None = None,
    base: Path | str | None = None,
    splits: str | Sequence[str] | None = None,
    batch_size: int = 256,
    device: str = "auto",
    data_workers: int | None = None,
    layers: str | Sequence[str] = "penultimate",
    unlabelled: bool = False,
    pooling: str | None = None,
    limit: int | None = None,
    dtype: str = "float32",
    feature_dtype: str = "float32",
    with_logits: bool = True,
    store: str = "features",
    memory: int = MEMORY,
    max_rows: int | None = None,
    rows_seed: int = 0,
    layer_store: str = "moments",
    similarity_rows: int = SUBSET_ROWS,
    similarity_seed: int = 0,
    overwrite: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    rows_per_task: int | None = None,
    progress: Progress | None = None,
) -> ExtractionSummary:
    """Write `out`/NAME.h5 for every checkpoint at `source`: features (N, D), labels, logits, classifier weights.

    A complete dump with the same provenance is skipped. Several processes may extract into the same directory at the
    same time; they divide the checkpoints among themselves. A dump gets its name when it is complete.

    Args:
        source: Checkpoint, or directory of checkpoints.
        out: Directory of the dumps.
        model: Name of the model; that in the checkpoint's metadata if None.
        model_arguments: Arguments of the model, which replace those in the metadata.
        data: Name of the data; that in the checkpoint's metadata if None.
        data_arguments: Arguments of the data, which replace those in the metadata.
        classifier: Name of the last linear layer; found by running the model if None.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint onto which an adapter is merged.
        splits: Names of splits; all if None.
        batch_size: Number of samples per forward pass.
        device: "auto", "cpu", "cuda[:n]" or "mps".
        data_workers: Number of processes that read images, which does not change the results; chosen by the number of
            free cores if None.
        layers: Layers that are stored beside the classifier's input: "penultimate" for none, "all", or their names.
        unlabelled: Whether to ignore the labels of the data.
        pooling: Method by which activations of layers become rows: one of `ckpt_probe.models.POOLINGS`; the usual one
            of each layer if None.
        limit: Number of samples of each split that are used; all if None.
        dtype: Precision of the forward pass: "float32", "float64", "float16" or "bfloat16".
        feature_dtype: Precision of the stored features.
        with_logits: Whether to store logits.
        store: "features" for rows, "moments" for class moments (at most 8·C·D² bytes), or "both".
        memory: Largest size of class moments in bytes.
        max_rows: Largest number of rows stored of each split; the other rows are only counted, and enter the moments.
        rows_seed: Seed by which these rows are drawn.
        layer_store: What to store of layers other than the classifier's input: moments, features or both.
        similarity_rows: Number of rows stored of every layer for comparisons, the same rows of each.
        similarity_seed: Seed by which these rows are drawn.
        overwrite: Whether to replace existing dumps; otherwise one with another provenance is an error.
        workers: Number of checkpoints that are extracted at the same time, each in a process of its own.
        scheduler: Address of a Dask scheduler whose workers extract the checkpoints instead.
        rows_per_task: Number of samples per task, rounded up to whole batches: if a split has more, the workers divide
            the samples of one checkpoint after another. The dumps are the same.
        progress: Receives messages and bars.

    Raises:
        UsageError: If an argument is invalid, or a dump of another provenance exists and `overwrite` is false.
        DataError: If a checkpoint or the data cannot be read, or do not fit the model.
    """
    setup, storage = from_arguments(Setup, locals()), from_arguments(Storage, locals())
    progress = DeduplicatedProgress(progress or NullProgress())
    staff = Workers(workers, scheduler)
    source = resolve(source)
    members = open_series(source, state_key=setup.state_key, base=setup.base)
    _require_own_names(members)
    request = request_of([as_path(source)], Path(out), setup, storage)
    order = _Order(members[0].path, setup, storage, Path(out), overwrite, request)
    subject = order.subject()
    done: dict[str, bool] = {}
    outcomes: list[Outcome] = []
    notes = dict.fromkeys(f"{m.name}: {listed(m.also)} has the same weights" for m in members if m.also)
    repeated = RepeatedWeights(setup.state_key, setup.base)
    notes |= dict.fromkeys([*step_warnings(members), *chain.from_iterable(map(repeated.warnings, members))])
    tasks = _worked(order, subject, members, staff, rows_per_task, progress)
    with progress.task("checkpoints", len(members), "checkpoints") as bar, closing(tasks):
        for number, result in tasks:
            done[members[number].name] = result.written
            notes |= dict.fromkeys(result.notes)
            outcomes += result.outcomes
            bar.advance()
    remove_abandoned(Path(out))
    prepared = [subject.inputs] if any(done.values()) else []
    for note in (*prepared, *dict.fromkeys(subject.notes), *notes, *warnings_of(outcomes)):
        progress.message(note)
    return ExtractionSummary(*(tuple(m.name for m in members if done[m.name] is written) for written in (True, False)))


def _worked(
    order: "_Order",
    subject: Subject,
    members: Sequence[Member],
    staff: Workers,
    rows: int | None,
    progress: Progress,
) -> Generator[tuple[int, "_Extracted"], None, None]:
    """Yield index and outcome of each checkpoint; every worker takes one, or all workers divide one after another."""
    extract_here = partial(_extract, subject=subject, order=order, progress=progress)
    names, say = [member.name for member in members], progress.message
    if rows is not None and not staff.alone:
        with Team(staff, say) as team:
            shared = Ranges(rows, team, progress)
            if any(shared.divides(subject, split, order.storage.limit) for split in subject.splits):
                yield from results(partial(extract_here, ranges=shared), members, names=names, workers=ALONE, say=say)
                return
    yield from results(extract_here if staff.alone else order.run, members, names=names, workers=staff, say=say)


def extract_members(
    members: Iterable[Member],
    source: Path | str,
    out: Path | str,
    setup: Setup,
    storage: Storage,
    *,
    overwrite: bool,
    progress: Progress,
) -> Iterator[tuple[str, bool]]:
    """Write `out`/NAME.h5 for each member of `source` as it appears.

    Model and data are opened for the first one. A member that another process is extracting is waited for.

    Args:
        members: Checkpoints, which may appear over time.
        source: Directory of the checkpoints.
        out: Directory of the dumps.
        setup: Model and data.
        storage: Contents of the dumps.
        overwrite: As in `extract_series`.
        progress: Where progress and notes go.

    Yields:
        Name of the member, and whether its dump was written; it may have existed already.

    Raises:
        UsageError: As in `extract_series`.
        DataError: As in `extract_series`.
    """
    order, subject, outcomes = None, None, []
    request = request_of([as_path(source)], Path(out), setup, storage)
    progress, so_far, repeated = DeduplicatedProgress(progress), [], RepeatedWeights(setup.state_key, setup.base)
    for member in members:
        if order is None or subject is None:
            order = _Order(member.path, setup, storage, Path(out), overwrite, request)
            subject = order.subject()
        work = partial(_extract, subject=subject, order=order, progress=progress)
        # If another process is working on it, `results` waits.
        for _, result in results(work, [member], names=[member.name], workers=ALONE, say=progress.message):
            outcomes += result.outcomes
            yield member.name, result.written
        so_far.append(member)
        for warning in (*step_warnings(so_far), *repeated.warnings(member)):
            progress.message(warning)
    for note in () if subject is None else (subject.inputs, *subject.notes, *warnings_of(outcomes)):
        progress.message(note)


@checked_keywords
def extract(
    model: nn.Module,
    loader: Iterable[tuple[Batch, Tensor]],
    out: Path | str,
    *,
    classifier: str | None = None,
    split: str = "data",
    device: str = "auto",
    overwrite: bool = False,
    store: str = "features",
    memory: int = MEMORY,
    layers: str | Sequence[str] = "penultimate",
    pooling: str | None = None,
) -> Path:
    """Write one dump from your own model and data loader.

    The model runs in evaluation mode and in its own dtype. Floating-point inputs are cast to that dtype; integers are
    not scaled. Features are stored as float32. Afterwards, also after an error, the training mode of each module and
    the device are restored.

    Args:
        model: Model.
        loader: Batches of (inputs, labels). Inputs are a tensor, or a mapping from names of the model's arguments to
            tensors. Labels have shape (n,), or (n, positions) if every position of a sample is a row (tokens); rows
            labelled −100 are left out.
        out: File to write.
        classifier: Name of the last linear layer; found by running the model if None.
        split: Name of the split in the dump.
        device: "auto", "cpu", "cuda[:n]" or "mps".
        overwrite: Whether to replace an existing file.
        store: "features", "moments" or "both", as in `Storage`.
        memory: Largest size of class moments in bytes.
        layers: Layers of which moments are stored too, as in `Setup`.
        pooling: Method by which activations of layers become rows, as in `Setup`.

    Returns:
        Path of the dump.

    Raises:
        UsageError: If `out` exists and `overwrite` is false, or the model is on several devices, or float64 for MPS.
        DataError: If there is no batch, inputs and labels do not fit, or the model has no such classifier.
    """
    if not isinstance(model, nn.Module):
        found, instead = type(model).__name__, "extract_series(source, out) reads checkpoints from files"
        raise UsageError(f"`model`: expected a torch.nn.Module, found {found}; {instead}")
    path, target, storage = Path(out), choose_device(device), Storage(store=store, memory=memory)
    refuse_existing(path, overwrite=overwrite)
    require_split_name(split)
    batches = _checked(loader)
    first = next(batches, None)
    if first is None:
        raise DataError("the data loader yielded no batch")
    with lent(model, target) as dtype:
        sample = on_device(part_of(first[0], slice(0, SAMPLE)), target, dtype)
        head = find_head(model, sample, classifier)
        taps = choose_taps(model, sample, head, layer_names(layers), pooling)
        weights, bias = head_parameters(model, head)
        storage.require_fitting(*weights.shape, positions=is_scored(head, len(weights)))
        known = _of_classes(chain([first], batches), weights.shape[0])
        blocks = forward_batches(model, head, known, device=target, dtype=dtype, taps=taps)
        with open_background_writer(path, None, (weights, bias), storage, taps=taps, overwrite=overwrite) as writer:
            scores = "scored" if is_scored(head, len(weights)) else "logits"
            write_split(writer, split, None, blocks, SplitPlan(scores))
    return path


@dataclass(frozen=True)
class _Extracted:
    """The outcome of one checkpoint.

    Attributes:
        written: Whether its dump was written; it may have existed already.
        notes: Messages of the worker.
        outcomes: Predictions, if the dump was written.
    """

    written: bool
    notes: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class _Order:
    """Settings that apply to every checkpoint of a series.

    Attributes:
        first: Checkpoint whose metadata name the model, and in which its head is found.
        setup: Model and data.
        storage: Contents of the dumps.
        out: Directory of the dumps.
        overwrite: Whether to replace existing dumps.
        request: Call that is stored in the provenance.
    """

    first: Path
    setup: Setup
    storage: Storage
    out: Path
    overwrite: bool
    request: Mapping[str, Any]

    def subject(self) -> Subject:
        """Open model, data and classifier.

        Raises:
            UsageError: If their results cannot be stored.
        """
        subject = open_subject(self.first, self.setup)
        warning = _require_storable(subject, self.storage)
        return replace(subject, model_notes=(*subject.model_notes, warning)) if warning else subject

    def complete(self, path: Path, provenance: Provenance) -> bool:
        """Return whether the dump exists and need not be written again.

        Raises:
            UsageError: If it has another provenance.
        """
        return not self.overwrite and _complete(path, provenance)

    def run(self, member: Member) -> _Extracted | Busy:
        """Extract a checkpoint in a worker, which opens model and data once for all of its checkpoints."""
        subject, log = made_once(self, self.subject), MessageLog()
        result = _extract(member, subject=subject, order=self, progress=log)
        if isinstance(result, Busy):
            return result
        return replace(result, notes=(*(f"{member.name}: {text}" for text in log.messages), *subject.notes))


def _extract(
    member: Member, *, subject: Subject, order: _Order, progress: Progress, ranges: Ranges | None = None
) -> _Extracted | Busy:
    """Extract one checkpoint, unless its dump is complete or another process is writing it."""
    path, storage = order.out / f"{member.name}.h5", order.storage
    with subject.setup.open(member.path) as checkpoint:
        size, sha256, epoch = checkpoint.size, checkpoint.content_hash(), checkpoint.metadata.epoch
        provenance = subject.provenance(member.name, size, sha256, step=member.step, epoch=epoch, storage=storage)
        provenance = replace(provenance, request=dict(order.request))
        if order.complete(path, provenance):
            return _Extracted(False)
        with claimed(path) as claim:
            if isinstance(claim, Busy):
                return claim
            # Another process may have finished the dump just before the claim.
            if order.complete(path, provenance):
                return _Extracted(False)
            subject.load(checkpoint.state_dict(), str(member.path), checkpoint.extra_state())
            source = partial(_blocks, member, subject, order, path, ranges, progress)
            tallies = _write(path, provenance, subject, order, source, progress)
            stated = stated_accuracies(checkpoint, subject.setup)
    return _Extracted(True, outcomes=(Outcome(member.name, tallies, stated),))


def _blocks(
    member: Member,
    subject: Subject,
    order: _Order,
    path: Path,
    ranges: Ranges | None,
    progress: Progress,
    split: str,
    bar: Task,
) -> Generator[Block, None, None]:
    """Yield the blocks of one split, computed in this process or by all workers."""
    storage = order.storage
    if ranges is not None and ranges.divides(subject, split, storage.limit):
        return ranges.blocks(order, subject, member, split, path, bar)
    return subject.forward(split, dtype=storage.forward_dtype, limit=storage.limit, progress=progress, bar=bar)


def _write(
    path: Path,
    provenance: Provenance,
    subject: Subject,
    order: _Order,
    source: Callable[[str, Task], Generator[Block, None, None]],
    progress: Progress,
) -> dict[str, Tally]:
    """Write the dump of the checkpoint whose weights are loaded; return the counted predictions of each split."""
    storage = order.storage
    tallies = {name: Tally() for name in subject.splits}
    counts = {name: subject.rows_of(name, storage.limit) for name in subject.splits}
    plans = {name: _plan(subject, name, count, storage) for name, count in counts.items()}
    with (
        progress.task(path.stem, sum(count or 0 for count in counts.values()), "rows") as bar,
        open_background_writer(
            path,
            provenance,
            subject.parameters(),
            storage,
            taps=subject.taps,
            overwrite=order.overwrite or path.exists(),
            names=subject.data.class_names,
            classes=subject.data.classes,
        ) as writer,
    ):
        for name, plan in plans.items():
            # If the writer fails, the thread that prepares batches ends here and not at garbage collection.
            with closing(source(name, bar)) as blocks:
                write_split(writer, name, counts[name], tallies[name].counted(blocks), plan)
    return tallies


def _plan(subject: Subject, split: str, rows: int | None, storage: Storage) -> SplitPlan:
    """Return the contents of the rows of a split.

    Raises:
        UsageError: If rows are to be drawn and their number is unknown.
    """
    if rows is None and storage.max_rows is not None:
        raise UsageError(f"--max-rows: how many rows split {split} gives is not known before it has been seen")
    weights = subject.parameters()[0]
    scores = "logits" if storage.with_logits else "none"
    if is_scored(subject.head, len(weights)):
        scores = "scored"
    elif isinstance(subject.head, Backbone):
        scores = "none"
    chosen = None if rows is None else choose_rows(rows, storage.max_rows, storage.rows_seed)
    return SplitPlan(scores, subject.data.labelled, chosen)


def _checked(loader: Iterable[tuple[Batch, Tensor]]) -> Iterator[tuple[Batch, Tensor]]:
    for number, (raw, raw_labels) in enumerate(loader):
        # A user's model may also take complex tensors, which `as_tensor` refuses.
        if isinstance(raw, Mapping):
            inputs: Batch = {name: as_tensor(part, f"batch {number}: {name}") for name, part in raw.items()}
        else:
            inputs = raw if isinstance(raw, Tensor) else as_tensor(raw, f"batch {number}: inputs")
        labels = as_labels(raw_labels, f"batch {number}: labels").cpu().to(torch.int64)
        parts = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
        if any(not part.ndim or not labels.ndim or len(part) != len(labels) for part in parts) or not parts:
            shapes = f"{', '.join(str(tuple(part.shape)) for part in parts)} and {tuple(labels.shape)}"
            raise DataError(f"batch {number}: inputs and labels: expected (n, …) and (n,), found {shapes}")
        yield inputs, labels


def _of_classes(batches: Iterable[tuple[Batch, Tensor]], classes: int) -> Iterator[tuple[Batch, Tensor]]:
    """Yield the batches after checking that their labels are classes of the model, as all metrics require."""
    for number, (inputs, labels) in enumerate(batches):
        # Only labels of positions may be −100, which leaves the position out.
        outside = ((labels < 0) & ((labels != LEFT_OUT) | (labels.ndim == 1))) | (labels >= classes)
        if bool(outside.any()):
            index = outside.nonzero()[0].tolist()
            problem = f"the label of sample {index[0]} is {int(labels[tuple(index)])}, outside 0 … {classes - 1}"
            raise DataError(f"batch {number}: {problem}, though the classifier gives {classes} logits")
        yield inputs, labels


def _complete(path: Path, provenance: Provenance) -> bool:
    if not path.exists():
        return False
    stored = None
    with suppress(DataError):
        stored = read_provenance(path)
    if stored is None:
        raise UsageError(f"{path}: exists, but is not a complete dump of ckpt-probe; --overwrite replaces it")
    differences = "; ".join(stored.differences(provenance))
    if differences:
        raise UsageError(
            f"{path}: a dump with another provenance (stored / now): {differences}; --overwrite replaces it"
        )
    return True


def _require_own_names(members: Sequence[Member]) -> None:
    names = [member.name for member in members]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"two checkpoints are called {twice}, so their dumps would have the same name; extract them separately"
        )


def _require_storable(subject: Subject, storage: Storage) -> str | None:
    """Check that the results of a subject can be stored.

    Returns:
        A warning if class moments were reduced to fit the memory limit, else None.

    Raises:
        UsageError: If they cannot be stored.
    """
    for name in subject.splits:
        require_split_name(name)
    if storage.dtype == "float64" and subject.device.type == "mps":
        raise UsageError("--dtype float64: not supported by MPS; add --device cpu, or use float32")
    classes, features = subject.parameters()[0].shape
    if isinstance(subject.head, Backbone):
        classes = max(1, subject.data.classes)
    elif subject.head.shows_logits and not storage.with_logits and not is_scored(subject.head, classes):
        raise UsageError(
            f"the model's logits are {subject.head.reading}, so that features and weights do not give its loss: they "
            "have to be stored"
        )
    return storage.require_fitting(classes, features, positions=is_scored(subject.head, classes))
