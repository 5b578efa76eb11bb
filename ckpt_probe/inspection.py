"""Describe checkpoints, directories of checkpoints, and dumps: tensors, metadata, step, head, and damage."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.errors import CkptProbeError, DataError, UsageError, error_context
from ckpt_probe.keywords import from_arguments
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve

if TYPE_CHECKING:
    from ckpt_probe.checkpoints import Checkpoint, Member
    from ckpt_probe.extraction import Setup

DUMP_SUFFIXES = frozenset({".h5", ".hdf5"})


def inspect(
    path: Path | str,
    *,
    statistics: bool = False,
    verify: bool = False,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    data: str | None = None,
    data_arguments: Mapping[str, Any] | None = None,
    classifier: str | None = None,
    state_key: str | None = None,
    base: Path | str | None = None,
    data_workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Describe a checkpoint of any format, a directory of checkpoints, or a dump.

    Args:
        path: File, directory, or address.
        statistics: Whether to compute norm, mean, spread, and shares of zeros, NaN and infinities of tensors.
        verify: Whether to read every byte and check it against the hashes or checksums of the file.
        model: Name of the model to run on one sample, which shows its head and layers; that in the metadata of the
            checkpoint if None.
        model_arguments: Arguments of the model, which replace those in the metadata.
        data: Name of the data of that sample.
        data_arguments: Arguments of the data, which replace those in the metadata.
        classifier: Name of the last linear layer; found by running the model if None.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint that a PEFT adapter was trained on.
        data_workers: Number of processes that read images.
        progress: Receives bars.

    Returns:
        The object that `ckpt-probe inspect --json` prints, with "verified" if `verify` is set: the numbers of
        tensors and of those with a hash, and the errors of damaged ones.

    Raises:
        UsageError: If an argument does not apply to the path.
        DataError: If the path cannot be read, or a header is damaged.
    """
    chosen = (model, model_arguments, data, data_arguments, classifier, data_workers)
    path, base, progress = resolve(path), resolve(base), progress or NullProgress()
    setup = None
    if any(value is not None for value in chosen):
        from ckpt_probe.extraction import Setup

        setup = from_arguments(Setup, {**locals(), "device": "cpu"})
    if path.suffix.lower() in DUMP_SUFFIXES:
        if statistics or any(value is not None for value in (setup, state_key, base)):
            raise UsageError(f"{path}: a dump; only `verify` applies to it")
        description = inspect_dump(path)
    else:
        from ckpt_probe.checkpoints import open_series

        members = open_series(path, state_key=state_key, base=base) if path.is_dir() else []
        if len(members) < 2:
            file = members[0].path if members else path
            description = inspect_checkpoint(file, state_key, base, statistics, setup, progress)
        elif statistics or setup is not None:
            option = "`statistics`" if statistics else "running a model"
            raise UsageError(f"{path}: {len(members)} checkpoints; {option} takes one, such as {members[-1].path}")
        else:
            description = inspect_series(path, members, state_key, base, progress)
    if verify:
        description["verified"] = verify_files(description, state_key, base, progress)
    return description


def inspect_checkpoint(
    file: Path, state_key: str | None, base: Path | None, statistics: bool, setup: "Setup | None", progress: Progress
) -> dict[str, Any]:
    """Return a description of a checkpoint, as `inspect --json` prints it.

    Args:
        file: Path of the checkpoint.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint that a PEFT adapter was trained on.
        statistics: Whether to compute statistics of every tensor.
        setup: Model and data to run; None uses those that the checkpoint names.
        progress: Receives a bar.

    Raises:
        DataError: If the checkpoint is damaged.
    """
    from ckpt_probe.checkpoints import likely_heads, open_checkpoint, quantised

    with open_checkpoint(file, state_key=state_key, base=base) as checkpoint:
        ours, trainer, config_directory = checkpoint.metadata, checkpoint.facts, checkpoint.config_directory
        size, parameters = checkpoint.size, checkpoint.parameters()
        metadata = {name: value for name, value in asdict(ours).items() if name not in ("step", "epoch")}
        foreign = {k: v for k, v in checkpoint.raw_metadata.items() if not k.startswith("ckpt_probe.")}
        head = _head(checkpoint, setup)
        heads, packed = likely_heads(checkpoint.layout), quantised(checkpoint.layout)
        return {
            "file": str(file),
            "kind": "checkpoint",
            "whole": True,
            "format": checkpoint.format,
            "files": [part.name for part in checkpoint.files],
            "bytes": size,
            **_of_a_run(checkpoint),
            "parameters": parameters,
            "state_key": checkpoint.state_key,
            "other_state_dicts": list(checkpoint.others),
            "not_tensors": list(checkpoint.dropped),
            "config_directory": str(config_directory) if config_directory else None,
            "metadata": {**{k: v for k, v in metadata.items() if v not in (None, {}, [])}, **foreign},
            "trainer": trainer,
            **head,
            "likely_heads": [asdict(head) for head in heads],
            "quantised": packed,
            "tensors": list(_tensors(checkpoint, statistics, progress)),
        }


def inspect_series(
    path: Path, members: "Sequence[Member]", state_key: str | None, base: Path | None, progress: Progress
) -> dict[str, Any]:
    """Return a short description of each checkpoint of a directory, in order, with warnings and the audit.

    Damaged checkpoints are left out, and their errors are in "unreadable", by name.
    """
    from ckpt_probe.checkpoints import RepeatedWeights, fingerprint, open_checkpoint
    from ckpt_probe.series import step_warnings

    repeated = RepeatedWeights(state_key, base)
    descriptions, repeats = [], []
    readable, unreadable = [], {}
    for member in members:
        try:
            with open_checkpoint(member.path, state_key=state_key, base=base) as checkpoint:
                descriptions.append(
                    {
                        "checkpoint": member.name,
                        **_of_a_run(checkpoint),
                        "step": member.step,
                        "step_source": member.step_source,
                        "format": checkpoint.format,
                        "bytes": checkpoint.size,
                        "tensors": len(checkpoint),
                        "parameters": checkpoint.parameters(),
                        "same_weights": list(member.also),
                        "file": str(member.path),
                    }
                )
                repeats += repeated.warnings(member, fingerprint(checkpoint))
            readable.append(member)
        except DataError as error:
            unreadable[member.name] = str(error)
    if not readable:
        raise DataError(next(iter(unreadable.values())))
    return {
        "file": str(path),
        "kind": "series",
        "checkpoints": descriptions,
        "unreadable": unreadable,
        "warnings": [*step_warnings(readable), *repeats],
        "audit": _audit(readable, state_key, base, progress),
    }


def _audit(members: "Sequence[Member]", state_key: str | None, base: Path | None, progress: Progress) -> dict[str, Any]:
    """Return verdict and findings of the audit of a series."""
    from ckpt_probe.trajectories import audit_series

    try:
        audit = audit_series(members, state_key=state_key, base=base, progress=progress)
    except CkptProbeError as error:
        return {"verdict": f"audit: not possible: {error}", "findings": []}
    if audit is None:
        return {"verdict": "audit: the checkpoints have no floating-point parameter in common", "findings": []}
    return {"verdict": audit.verdict, "findings": [asdict(finding) for finding in audit.findings]}


def inspect_dump(file: Path) -> dict[str, Any]:
    """Return a description of a dump, as `inspect --json` prints it; raise DataError if it is damaged."""
    from ckpt_probe.dumps import open_dump

    with open_dump(file) as dump:
        arrays = {"classifier/weights": dump.weights, "classifier/bias": dump.bias}
        arrays |= {f"{split}/{name}": array for split in dump.splits for name, array in dump[split].arrays().items()}
        return {
            "file": str(file),
            "kind": "dump" if dump.provenance else "dump without provenance",
            "whole": True,
            "bytes": dump.path.stat().st_size,
            "step": dump.step,
            "metadata": asdict(dump.provenance) if dump.provenance else {},
            "classifier": dump.provenance.classifier if dump.provenance else None,
            "class_names": None if dump.class_names is None else list(dump.class_names),
            "tensors": [
                {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
                for name, array in arrays.items()
                if array is not None
            ],
        }


def _of_a_run(checkpoint: "Checkpoint") -> dict[str, Any]:
    from ckpt_probe.checkpoints import step_of

    step, source = step_of(checkpoint)
    return {"step": step, "step_source": source, "epoch": checkpoint.metadata.epoch}


def _tensors(checkpoint: "Checkpoint", statistics: bool, progress: Progress) -> Iterator[dict[str, Any]]:
    layout = checkpoint.layout
    described = {
        name: {"name": name, "dtype": layout[name][0], "shape": list(layout[name][1])} for name in sorted(layout)
    }
    if not statistics:
        yield from described.values()
        return
    from ckpt_probe.checkpoints.statistics import statistics_of

    with progress.task("statistics", len(checkpoint), "tensors") as bar:
        for name, values in statistics_of(checkpoint):
            bar.advance()
            yield {**described[name], **(asdict(values) if values else {})}


def _head(checkpoint: "Checkpoint", setup: "Setup | None") -> dict[str, Any]:
    """Return the head of the model, identified by running it; an unknown head if no model is named."""
    if setup is None and checkpoint.metadata.model is None:
        return {"classifier": None}
    from ckpt_probe.extraction import Setup

    try:
        head = inspect_model(checkpoint, setup or Setup(device="cpu"))
    except CkptProbeError as error:
        if setup is not None:
            raise
        return {"classifier": f"unknown: {str(error).removeprefix(f'{checkpoint.path}: ')}"}
    return {"classifier": head["layer"], "head": head}


def inspect_model(checkpoint: "Checkpoint", setup: "Setup") -> dict[str, Any]:
    """Describe a checkpoint's model, with samples of its data or, if none are named, random inputs.

    Args:
        checkpoint: Open checkpoint.
        setup: Model and data.

    Returns:
        Name and arguments of the model, with the entries of `describe_head` and `describe_layers`.

    Raises:
        UsageError: As in `build_subject`.
        DataError: As in `build_subject`.
    """
    from ckpt_probe import models
    from ckpt_probe.extraction.building import build_subject, choose_model, load_model

    if setup.data or (setup.model is None and checkpoint.metadata.data):
        subject = build_subject(checkpoint, setup)
        name, arguments, origin = subject.model_name, subject.model_arguments, f"data {subject.data.name}"
        model, head, sample = subject.model, subject.head, models.as_taken_by(subject.model, subject.sample)
    else:
        choice, device, origin = choose_model(checkpoint, setup), models.choose_device(setup.device), "random inputs"
        model, name, arguments, _ = load_model(checkpoint, setup, choice, device)
        with error_context(f"{checkpoint.path}: model {name}: "):
            sample = models.as_taken_by(model, models.made_up_inputs(model, arguments))
            named = setup.classifier or checkpoint.metadata.classifier
            head = models.find_rows(model, sample, named, setup.pooling)
    description = {"model": name, "model_arguments": arguments, "shown": origin}
    if isinstance(head, models.Backbone):
        return {**description, **models.describe_backbone(head, model, sample)}
    return {**description, **models.describe_head(head, model, sample), **models.describe_layers(head, model, sample)}


def verify_files(
    description: dict[str, Any], state_key: str | None, base: Path | None, progress: Progress
) -> dict[str, Any]:
    """Read every tensor of the inspected files and check it against its hash or checksum.

    Args:
        description: Description of a checkpoint, a series or a dump, from `inspect`.
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint that a PEFT adapter was trained on.
        progress: Receives a bar.

    Returns:
        "tensors": number of tensors; "checked": number of those with a hash or checksum; "damaged": error messages.
    """
    files = [resolve(part["file"]) for part in description.get("checkpoints", [description])]
    read, checked, damaged = 0, 0, []
    with progress.task("verify", None, "tensors") as bar:
        for file in files:
            is_dump = description["kind"].startswith("dump")
            for under_hash, error in _verify_dump(file) if is_dump else _verify_checkpoint(file, state_key, base):
                bar.advance()
                read, checked = read + 1, checked + under_hash
                damaged += [] if error is None else [error]
    return {"tensors": read, "checked": checked, "damaged": damaged}


def _verify_checkpoint(file: Path, state_key: str | None, base: Path | None) -> Iterator[tuple[bool, str | None]]:
    from ckpt_probe.checkpoints import open_checkpoint

    with open_checkpoint(file, state_key=state_key, base=base) as checkpoint:
        for name in checkpoint.names:
            message = None
            try:
                checkpoint.read(name)
            except DataError as error:
                message = str(error)
            yield checkpoint.is_hashed(name), message


def _verify_dump(file: Path) -> Iterator[tuple[bool, str | None]]:
    from ckpt_probe.dumps import open_dump

    with open_dump(file) as dump:
        for split in dump.splits:
            yield from dump[split].verify()
