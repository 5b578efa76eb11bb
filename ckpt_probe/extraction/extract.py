"""From checkpoints and data to dumps: one forward pass a sample, the classifier tapped, resumable."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import RepeatedWeights, open_series
from ckpt_probe.data import LEFT_OUT
from ckpt_probe.dumps import Provenance, read_provenance, require_split_name
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.extraction.forward import Block, forward_batches, lent
from ckpt_probe.extraction.plausibility import Outcome, Tally, stated_accuracies, warnings_of
from ckpt_probe.extraction.ranges import Ranges
from ckpt_probe.extraction.request import request_of
from ckpt_probe.extraction.scoring import is_scored
from ckpt_probe.extraction.setup import Setup, Storage
from ckpt_probe.extraction.subject import SAMPLE, Subject, head_parameters, open_subject
from ckpt_probe.extraction.writer import SplitPlan, choose_rows, open_background_writer, write_split
from ckpt_probe.files import refuse_existing
from ckpt_probe.metrics.arrays import as_labels, as_tensor
from ckpt_probe.models import Backbone, Batch, choose_device, choose_taps, find_head, on_device, part_of
from ckpt_probe.moments import MEMORY
from ckpt_probe.progress import DeduplicatedProgress, MessageLog, NullProgress, Progress, Task
from ckpt_probe.scheduling import ALONE, Busy, Team, Workers, claimed, made_once, remove_abandoned, results
from ckpt_probe.series import Member, step_warnings


@dataclass(frozen=True)
class ExtractionSummary:
    """Names of the dumps written, and of those that were complete already."""

    written: tuple[str, ...]
    skipped: tuple[str, ...]


def extract_series(
    source: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
    rows_per_task: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> ExtractionSummary:
    """Write `out`/NAME.h5 for every checkpoint at `source`: features (N, D), labels, logits, classifier weights.

    options: those of `Setup` (model, model_arguments, data, data_arguments, classifier, state_key, base, splits,
    batch_size, device, data_workers, unlabelled, layers, pooling), which take the place of what the checkpoints say,
    and those of `Storage` (limit, dtype, feature_dtype, with_logits, store, memory, max_rows, rows_seed, layer_store,
    similarity_rows, similarity_seed). A dump that is complete and of the same provenance is skipped; of another
    provenance, it is an error unless `overwrite`. Processes that extract into the same directory at the same time share
    the checkpoints between them. workers: so many checkpoints at a time, each in a process of its own; scheduler: the
    address of a Dask cluster that does them instead. rows_per_task: where a split has more samples, the workers share
    each checkpoint, and a task is a range of so many samples, or a few more; the dumps are the same. Raises UsageError
    and DataError as the parts do; a dump has its name only once it is whole.
    """
    staff = Workers(workers, scheduler)
    progress, setup = DeduplicatedProgress(progress or NullProgress()), Setup.taken_from(options)
    storage = Storage(**options)
    members = open_series(source, state_key=setup.state_key, base=setup.base)
    _require_own_names(members)
    request = request_of([Path(source)], Path(out), setup, storage)
    order = _Order(members[0].path, setup, storage, Path(out), overwrite, request)
    subject = order.subject()
    done: dict[str, bool] = {}
    outcomes: list[Outcome] = []
    notes = dict.fromkeys(f"{m.name}: {listed(m.also)} has the same weights" for m in members if m.also)
    repeated = RepeatedWeights(setup.state_key, setup.base)
    notes |= dict.fromkeys([*step_warnings(members), *chain.from_iterable(map(repeated.warnings, members))])
    tasks = _worked(order, subject, members, staff, rows_per_task, progress)
    with progress.task("checkpoints", len(members), "checkpoints") as bar, closing(tasks):
        for number, found in tasks:
            done[members[number].name] = found.written
            notes |= dict.fromkeys(found.notes)
            outcomes += found.outcomes
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
    """What comes of each checkpoint, by its place: one a worker, or all workers at one after the other."""
    here = partial(_extract, subject=subject, order=order, progress=progress)
    names, say = [member.name for member in members], progress.message
    if rows is not None and not staff.alone:
        with Team(staff, say) as team:
            shared = Ranges(rows, team, progress)
            if any(shared.divides(subject, split, order.storage.limit) for split in subject.splits):
                yield from results(partial(here, ranges=shared), members, names=names, workers=ALONE, say=say)
                return
    yield from results(here if staff.alone else order.run, members, names=names, workers=staff, say=say)


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
    """Write `out`/NAME.h5 for each member of `source` as it comes; yield its name, and whether it was written.

    The model is built, and the data are opened, for the first. What another process extracts at that moment is waited
    for. Raises as `extract_series`.
    """
    order, subject, outcomes = None, None, []
    request = request_of([Path(source)], Path(out), setup, storage)
    progress, so_far, repeated = DeduplicatedProgress(progress), [], RepeatedWeights(setup.state_key, setup.base)
    for member in members:
        if order is None or subject is None:
            order = _Order(member.path, setup, storage, Path(out), overwrite, request)
            subject = order.subject()
        work = partial(_extract, subject=subject, order=order, progress=progress)
        # Where another call is at it, that is waited for.
        for _, found in results(work, [member], names=[member.name], workers=ALONE, say=progress.message):
            outcomes += found.outcomes
            yield member.name, found.written
        so_far.append(member)
        for warning in (*step_warnings(so_far), *repeated.warnings(member)):
            progress.message(warning)
    for note in () if subject is None else (subject.inputs, *subject.notes, *warnings_of(outcomes)):
        progress.message(note)


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
    layers: str = "penultimate",
    pooling: str | None = None,
) -> Path:
    """Write one dump from your own model and batches of (inputs, labels); returns its path.

    The model's classifier is found by running it, or named; `store` and `memory` as `Storage`, `layers` and `pooling`
    as `Setup`, with moments of each layer. The model runs in evaluation mode, on `device`, in its own dtype; inputs, a
    tensor or a mapping of the model's own arguments to tensors, are given to it as they come, whole numbers unscaled,
    only floating ones cast to that dtype. Where every position of a sample is a row (tokens), labels are
    (n, positions), −100 where one is left out. Features are stored as float32. Afterwards, also after an error, the
    model is as it was: training mode of each module, dtype and device.
    Raises UsageError where `out` exists and `overwrite` is false, where the model is on several devices, or float64 for
    MPS; DataError where there is no batch, inputs and labels do not fit, or the model has no such classifier.
    """
    path, place, storage = Path(out), choose_device(device), Storage(store=store, memory=memory)
    refuse_existing(path, overwrite=overwrite)
    require_split_name(split)
    batches = _checked(loader)
    first = next(batches, None)
    if first is None:
        raise DataError("the data loader yielded no batch")
    with lent(model, place) as dtype:
        sample = on_device(part_of(first[0], slice(0, SAMPLE)), place, dtype)
        head = find_head(model, sample, classifier)
        taps = choose_taps(model, sample, head, layers, pooling)
        weights, bias = head_parameters(model, head)
        storage.require_fitting(*weights.shape, positions=is_scored(head, len(weights)))
        known = _of_classes(chain([first], batches), weights.shape[0])
        blocks = forward_batches(model, head, known, device=place, dtype=dtype, taps=taps)
        with open_background_writer(path, None, (weights, bias), storage, taps=taps, overwrite=overwrite) as writer:
            scores = "scored" if is_scored(head, len(weights)) else "logits"
            write_split(writer, split, None, blocks, SplitPlan(scores))
    return path


@dataclass(frozen=True)
class _Extracted:
    """What came of one checkpoint: whether its dump was written, or there before, and what a worker has to say.

    outcomes: its predictions, of a checkpoint whose dump was written.
    """

    written: bool
    notes: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()


@dataclass(frozen=True)
class _Order:
    """What is asked for every checkpoint of a series. first: the one by which the model and its head are known."""

    first: Path
    setup: Setup
    storage: Storage
    out: Path
    overwrite: bool
    request: Mapping[str, Any]

    def subject(self) -> Subject:
        """Model, data and classifier. Raises UsageError where a dump cannot keep what they give."""
        subject = open_subject(self.first, self.setup)
        told = _require_storable(subject, self.storage)
        return replace(subject, said=(*subject.said, told)) if told else subject

    def complete(self, path: Path, provenance: Provenance) -> bool:
        """Whether the dump is there and need not be written again. Raises UsageError where it is another one."""
        return not self.overwrite and _complete(path, provenance)

    def run(self, member: Member) -> _Extracted | Busy:
        """Extract a checkpoint in a worker, which opens model and data once for all of its checkpoints."""
        subject, said = made_once(self, self.subject), MessageLog()
        found = _extract(member, subject=subject, order=self, progress=said)
        if isinstance(found, Busy):
            return found
        return replace(found, notes=(*(f"{member.name}: {text}" for text in said.messages), *subject.notes))


def _extract(
    member: Member, *, subject: Subject, order: _Order, progress: Progress, ranges: Ranges | None = None
) -> _Extracted | Busy:
    """Open a checkpoint, load it, run it over every split and write its dump, unless that is done or being done."""
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
            # Another process may have finished it just before the claim.
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
    """The blocks of one split, forwarded here, or by all workers."""
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
    """Write the dump of a checkpoint whose weights the subject has; returns the predictions of each split, counted."""
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
            # Where the writer fails, the thread that makes batches ready ends here and not when memory is tidied.
            with closing(source(name, bar)) as blocks:
                write_split(writer, name, counts[name], tallies[name].counted(blocks), plan)
    return tallies


def _plan(subject: Subject, split: str, rows: int | None, storage: Storage) -> SplitPlan:
    """What will come with the rows of a split. Raises UsageError where some are to be chosen of an unknown number."""
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
    for number, (given, named) in enumerate(loader):
        # Of a model of their own, inputs may also be complex.
        if isinstance(given, Mapping):
            inputs: Batch = {name: as_tensor(part, f"batch {number}: {name}") for name, part in given.items()}
        else:
            inputs = given if isinstance(given, Tensor) else as_tensor(given, f"batch {number}: inputs")
        labels = as_labels(named, f"batch {number}: labels").cpu().to(torch.int64)
        parts = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
        if any(not part.ndim or not labels.ndim or len(part) != len(labels) for part in parts) or not parts:
            shapes = f"{', '.join(str(tuple(part.shape)) for part in parts)} and {tuple(labels.shape)}"
            raise DataError(f"batch {number}: inputs and labels: expected (n, …) and (n,), found {shapes}")
        yield inputs, labels


def _of_classes(batches: Iterable[tuple[Batch, Tensor]], classes: int) -> Iterator[tuple[Batch, Tensor]]:
    """The batches, each with its labels looked at before it is forwarded: no metric knows what to do with others."""
    for number, (inputs, labels) in enumerate(batches):
        # A label for each position may say that one is left out.
        outside = ((labels < 0) & ((labels != LEFT_OUT) | (labels.ndim == 1))) | (labels >= classes)
        if bool(outside.any()):
            place = outside.nonzero()[0].tolist()
            told = f"the label of sample {place[0]} is {int(labels[tuple(place)])}, outside 0 … {classes - 1}"
            raise DataError(f"batch {number}: {told}, though the classifier gives {classes} logits")
        yield inputs, labels


def _complete(path: Path, provenance: Provenance) -> bool:
    if not path.exists():
        return False
    found = None
    with suppress(DataError):
        found = read_provenance(path)
    if found is None:
        raise UsageError(f"{path}: exists, but is not a complete dump of ckpt-probe; --overwrite replaces it")
    differences = found.differences(provenance)
    if differences:
        told = "; ".join(differences)
        raise UsageError(f"{path}: a dump with another provenance (stored / now): {told}; --overwrite replaces it")
    return True


def _require_own_names(members: Sequence[Member]) -> None:
    names = [member.name for member in members]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"two checkpoints are called {twice}, so their dumps would have the same name; extract them separately"
        )


def _require_storable(subject: Subject, storage: Storage) -> str | None:
    """What is to be said of what is stored. Raises UsageError where it cannot be stored so."""
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
