"""The two ends of a path: their tensors, B in A's order where that is asked for, and what is kept of it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.alignment import (
    Alignment,
    match_activations,
    match_weights,
    proved,
    read_spec,
    trace_symmetry,
)
from ckpt_probe.analysis import Record
from ckpt_probe.checkpoints import CheckpointMetadata, State, open_checkpoint, save_checkpoint
from ckpt_probe.data import Split, one_tensor
from ckpt_probe.errors import DataError
from ckpt_probe.extraction import Setup, Subject
from ckpt_probe.files import distinct_names
from ckpt_probe.merging import check_averaged, check_match
from ckpt_probe.merging.streaming import OF_A_POINT
from ckpt_probe.paths.place import PathPlace
from ckpt_probe.paths.shapes import require_finite
from ckpt_probe.progress import Progress, Task

Ends = tuple[State, State]
"""State dicts of both ends."""

PROVED_ON = 64
"""Samples on which an alignment has to leave the outputs as they are."""

BATCH = 32
"""Samples whose activations, all of both networks, are held at once."""

ALIGNMENT = "ckpt_probe.alignment"


@dataclass(frozen=True)
class Aligning:
    """How B is put in A's order: "permutation" by weights, "activations" by those on so many training samples."""

    method: str
    samples: int
    spec: Path | None = None


def check_ends(ends: tuple[Path, Path], setup: Setup) -> None:
    """Raise DataError where the tensors of both differ in name, shape or dtype, or have a dtype that has no line."""
    with setup.open(ends[0]) as first, setup.open(ends[1]) as second:
        check_match(first, second)
        check_averaged(first)


def read_ends(ends: tuple[Path, Path], setup: Setup) -> Ends:
    """Both state dicts. Raises DataError naming the file and the tensor where a number is NaN or infinite."""
    states = []
    for path in ends:
        with setup.open(path) as checkpoint:
            states.append(checkpoint.state_dict())
        try:
            for name, tensor in states[-1].items():
                require_finite(name, tensor)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return states[0], states[1]


def aligned(
    place: PathPlace, ends: tuple[Path, Path], tensors: Ends, subject: Subject, how: Aligning, progress: Progress
) -> tuple[Ends, Record]:
    """A, B in A's order, and how much nearer that is; B is kept as `place`/aligned.safetensors with its metadata.

    What an earlier call has kept is taken as it is. Raises DataError as the matching does, naming both files.
    """
    if place.aligned.exists():
        with open_checkpoint(place.aligned) as checkpoint:
            if ALIGNMENT in checkpoint.raw_metadata:
                return (tensors[0], checkpoint.state_dict()), json.loads(checkpoint.raw_metadata[ALIGNMENT])
    try:
        found = _alignment(tensors, subject, how, progress)
    except DataError as error:
        raise DataError(f"{ends[0]}, {ends[1]}: {error}") from error
    told: Record = {"to": distinct_names(ends)[0], "method": how.method, "before": found.before, "after": found.after}
    told["output_change"] = found.error
    with subject.setup.open(ends[1]) as checkpoint:
        metadata = {**checkpoint.raw_metadata, **_missing(checkpoint.metadata, subject), ALIGNMENT: json.dumps(told)}
    save_checkpoint(place.aligned, found.state, metadata, overwrite=True)
    return (tensors[0], found.state), told


def point_metadata(raw: Mapping[str, str], subject: Subject, told: Record) -> dict[str, str]:
    """The metadata of a point on a path: those of A, less what holds for A alone; model and data where A has none."""
    kept = {name: value for name, value in raw.items() if name not in OF_A_POINT}
    stated = _missing(CheckpointMetadata.from_strings(kept), subject)
    return {**kept, **stated, "ckpt_probe.path": json.dumps(told)}


def _missing(metadata: CheckpointMetadata, subject: Subject) -> dict[str, str]:
    """Model and data as strings where the metadata name none, so that every other command can open the file."""
    stated: dict[str, Any] = {}
    if metadata.model is None:
        stated |= {"model": subject.model_name, "model_arguments": subject.model_arguments}
        stated |= {"classifier": subject.classifier}
    if metadata.data is None:
        stated |= {"data": subject.data.name, "data_arguments": subject.data.arguments}
    return CheckpointMetadata(**stated).to_strings()


def _alignment(tensors: Ends, subject: Subject, how: Aligning, progress: Progress) -> Alignment:
    a, b = tensors
    splits = subject.data.splits
    split = splits.get("train", next(iter(splits.values())))
    model = subject.model.eval()
    inputs = one_tensor(split.batch(slice(0, PROVED_ON))[0], "alignment").to(subject.device)
    symmetry = trace_symmetry(model, inputs) if how.spec is None else read_spec(how.spec, a)
    if how.method == "permutation":
        return proved(a, b, symmetry, match_weights(a, b, symmetry, progress=progress), model, inputs)
    with progress.task("activations", min(how.samples, len(split)), "samples") as bar:
        batches = _batches(split, how.samples, subject.device, bar)
        return proved(a, b, symmetry, match_activations(a, b, symmetry, model, batches), model, inputs)


def _batches(split: Split, samples: int, device: torch.device, bar: Task) -> Iterator[Tensor]:
    count = min(samples, len(split))
    for start in range(0, count, BATCH):
        inputs, _ = split.batch(slice(start, min(start + BATCH, count)))
        yield one_tensor(inputs, "alignment").to(device)
        bar.advance(len(inputs))
