"""From checkpoints and data to dumps: one forward pass a sample, the classifier tapped, resumable."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import library_versions, open_checkpoint, open_series
from ckpt_probe.dumps import FEATURE_DTYPES, DumpWriter, Provenance, read_provenance, require_split_name
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.extraction.background import BackgroundWriter
from ckpt_probe.extraction.forward import forward_batches, forward_blocks, lent
from ckpt_probe.extraction.storing import StoreWriter, require_store
from ckpt_probe.extraction.subject import Subject, Wanted, open_subject
from ckpt_probe.files import content_hash, refuse_existing
from ckpt_probe.models import choose_device, find_classifier, on_device
from ckpt_probe.moments.accumulator import MEMORY
from ckpt_probe.progress import Progress, Silent
from ckpt_probe.series import Member

FORWARD_DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class ExtractionSummary:
    """Names of the dumps written, and of those that were complete already."""

    written: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Options:
    splits: tuple[str, ...]
    limit: int | None
    batch_size: int
    device: str
    dtype: str
    feature_dtype: str
    overwrite: bool
    with_logits: bool
    store: str
    memory: int


def extract_series(
    source: Path | str,
    out: Path | str,
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    classifier: str | None = None,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 256,
    device: str = "auto",
    dtype: str = "float32",
    feature_dtype: str = "float32",
    overwrite: bool = False,
    with_logits: bool = True,
    store: str = "features",
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> ExtractionSummary:
    """Write `out`/NAME.h5 for every checkpoint at `source`: features (N, D), labels, logits, classifier weights.

    Model and data are the ones that our checkpoints name; `model`, `data` and their arguments name others. A dump that
    is complete and of the same provenance is skipped; of another provenance, it is an error unless `overwrite`. `store`
    "moments" keeps class moments (8·C·D² bytes at most, which must fit `memory`) in place of the rows, "both" beside
    them. Raises UsageError and DataError as the parts do; a dump has its name only once it is whole.
    """
    progress = progress or Silent()
    members = open_series(source)
    _require_own_names(members)
    subject = open_subject(members[0].path, Wanted(model, model_arguments, data, data_arguments, classifier, device))
    chosen = tuple(dict.fromkeys(splits or subject.data.splits))
    for name in chosen:
        subject.data.split(name)
        require_split_name(name)
    options = _Options(chosen, limit, batch_size, device, dtype, feature_dtype, overwrite, with_logits, store, memory)
    _require_sensible(options, subject.device)
    weights, _ = _parameters(subject.model, subject.classifier)
    require_store(store, weights.shape[0], weights.shape[1], memory)
    written, skipped = [], []
    with progress.task("checkpoints", len(members), "checkpoints") as bar:
        for member in members:
            path = Path(out) / f"{member.name}.h5"
            provenance = _provenance(member, subject, options)
            if not overwrite and _complete(path, provenance):
                skipped.append(member.name)
            else:
                _load(subject, member)
                _write(path, provenance, subject, options, progress)
                written.append(member.name)
            bar.advance()
    return ExtractionSummary(tuple(written), tuple(skipped))


def extract(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    out: Path | str,
    *,
    classifier: str | None = None,
    split: str = "data",
    device: str = "auto",
    overwrite: bool = False,
    store: str = "features",
    memory: int = MEMORY,
) -> Path:
    """Write one dump from your own model and batches of (inputs, labels); returns its path.

    The model's classifier is found by running it, or named; `store` and `memory` as `extract_series`. The model runs in
    evaluation mode, on `device`, in its own dtype; inputs are given to it as they come, whole numbers unscaled, only
    floating ones cast to that dtype. Features are stored as float32. Afterwards, also after an error, it is as it was:
    training mode of each module, dtype and device. Raises UsageError where `out` exists and `overwrite` is false, where
    the model is on several devices, or float64 for MPS; DataError where there is no batch, inputs and labels do not fit
    each other, or the model has no such classifier.
    """
    path, place = Path(out), choose_device(device)
    refuse_existing(path, overwrite=overwrite)
    require_split_name(split)
    batches = _checked(loader)
    first = next(batches, None)
    if first is None:
        raise DataError("the loader gave no batch")
    with lent(model, place) as dtype:
        name = find_classifier(model, on_device(first[0], place, dtype), classifier)
        weights, bias = _parameters(model, name)
        require_store(store, weights.shape[0], weights.shape[1], memory)
        writer = DumpWriter(path, None, classes=weights.shape[0], features=weights.shape[1], overwrite=overwrite)
        with BackgroundWriter(lambda: StoreWriter(writer, store, memory=memory)) as background:
            background.call("write_classifier", weights, bias)
            background.call("start_split", split)
            for block in forward_batches(model, name, chain([first], batches), device=place, dtype=dtype):
                background.call("append", split, block.features, block.labels, block.logits)
            background.call("finish_split", split)
    return path


def _checked(loader: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    for number, (given, named) in enumerate(loader):
        inputs, labels = torch.as_tensor(given), torch.as_tensor(named).cpu().to(torch.int64)
        if inputs.ndim < 1 or labels.ndim != 1 or len(inputs) != len(labels):
            shapes = f"{tuple(inputs.shape)} and {tuple(labels.shape)}"
            raise DataError(f"batch {number}: inputs and labels: expected (n, …) and (n,), found {shapes}")
        yield inputs, labels


def _load(subject: Subject, member: Member) -> None:
    with open_checkpoint(member.path) as checkpoint:
        state = checkpoint.state_dict()
    # The last forward pass left the model in its own dtype, into which these weights might not fit.
    double = any(tensor.dtype == torch.float64 for tensor in state.values())
    place = torch.device("cpu") if double and subject.device.type == "mps" else subject.device
    subject.model.to(place).to(torch.float64 if double else torch.float32)
    subject.load(state, str(member.path))


def _write(path: Path, provenance: Provenance, subject: Subject, options: _Options, progress: Progress) -> None:
    weights, bias = _parameters(subject.model, subject.classifier)
    counts = {name: len(subject.data.split(name)) for name in options.splits}
    if options.limit is not None:
        counts = {name: min(count, options.limit) for name, count in counts.items()}
    writer = DumpWriter(
        path,
        provenance,
        classes=weights.shape[0],
        features=weights.shape[1],
        feature_dtype=options.feature_dtype,
        overwrite=options.overwrite or path.exists(),
    )
    with (
        progress.task(path.stem, sum(counts.values()), "samples") as bar,
        BackgroundWriter(lambda: _storing(writer, options)) as background,
    ):
        background.call("write_classifier", weights, bias)
        for name, count in counts.items():
            background.call("start_split", name, count, logits=options.with_logits)
            blocks = forward_blocks(
                subject.model,
                subject.classifier,
                subject.data.split(name),
                batch_size=options.batch_size,
                device=subject.device,
                dtype=FORWARD_DTYPES[options.dtype],
                limit=options.limit,
                progress=progress,
                bar=bar,
            )
            for block in blocks:
                background.call("append", name, block.features, block.labels, block.logits)
            background.call("finish_split", name)


def _storing(writer: DumpWriter, options: _Options) -> StoreWriter:
    return StoreWriter(writer, options.store, feature_dtype=options.feature_dtype, memory=options.memory)


def _parameters(model: nn.Module, classifier: str) -> tuple[Tensor, Tensor | None]:
    layer: Any = model.get_submodule(classifier)
    # float64 holds every dtype's numbers exactly, so that what is analyzed is what the checkpoint says.
    weights = layer.weight.detach().cpu().double()
    return weights, None if layer.bias is None else layer.bias.detach().cpu().double()


def _complete(path: Path, provenance: Provenance) -> bool:
    if not path.exists():
        return False
    found = None
    with suppress(DataError):
        found = read_provenance(path)
    if found is None:
        raise UsageError(f"{path}: exists, and is no complete dump of ckpt-probe's; --overwrite replaces it")
    differences = found.differences(provenance)
    if differences:
        told = "; ".join(differences)
        raise UsageError(f"{path}: a dump of another provenance (there / now): {told}; --overwrite replaces it")
    return True


def _provenance(member: Member, subject: Subject, options: _Options) -> Provenance:
    with open_checkpoint(member.path) as checkpoint:
        metadata = checkpoint.metadata
    return Provenance(
        checkpoint=member.name,
        checkpoint_size=member.path.stat().st_size,
        checkpoint_sha256=content_hash(member.path),
        step=member.step,
        epoch=metadata.epoch,
        model=subject.model_name,
        model_arguments=subject.model_arguments,
        data=subject.data.name,
        data_arguments=subject.data.arguments,
        classifier=subject.classifier,
        forward_dtype=options.dtype,
        feature_dtype=options.feature_dtype,
        splits=options.splits,
        limit=options.limit,
        logits=options.with_logits,
        store=options.store,
        device=str(subject.device),
        versions=library_versions(),
    )


def _require_own_names(members: Sequence[Member]) -> None:
    names = [member.name for member in members]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two checkpoints are called {twice}: their dumps would have one name; extract them apart")


def _require_sensible(options: _Options, device: torch.device) -> None:
    if options.batch_size < 1 or (options.limit is not None and options.limit < 1):
        raise UsageError("--batch-size and --limit must be at least 1")
    if options.dtype not in FORWARD_DTYPES:
        raise UsageError(f"--dtype {options.dtype}: expected one of {', '.join(FORWARD_DTYPES)}")
    if options.dtype == "float64" and device.type == "mps":
        raise UsageError("--dtype float64: MPS has none; add --device cpu, or take float32")
    if options.feature_dtype not in FEATURE_DTYPES:
        raise UsageError(f"--feature-dtype {options.feature_dtype}: expected one of {', '.join(FEATURE_DTYPES)}")
