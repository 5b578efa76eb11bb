"""The two ends of a path: their tensors, and B with its channels in A's order."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.alignment import Alignment, match_activations, match_weights, proved, read_spec, trace_symmetry
from ckpt_probe.analysis import Record
from ckpt_probe.checkpoints import CheckpointMetadata, State, open_checkpoint, save_checkpoint
from ckpt_probe.data import Split, one_tensor
from ckpt_probe.errors import error_context
from ckpt_probe.extraction import Subject
from ckpt_probe.files import distinct_names
from ckpt_probe.merging import check_averaged, check_match
from ckpt_probe.merging.streaming import OF_A_POINT
from ckpt_probe.models import unwrapped
from ckpt_probe.paths.options import PathOptions
from ckpt_probe.paths.shapes import require_finite
from ckpt_probe.paths.survey import Job
from ckpt_probe.progress import Progress, Task

Ends = tuple[State, State]
"""State dicts of A and B."""

PathJob = Job[PathOptions]

PROVED_ON = 64
"""Number of samples on which an alignment must leave the outputs unchanged."""

BATCH = 32
"""Number of samples whose activations, all of both networks, are in memory together."""

ALIGNMENT = "ckpt_probe.alignment"


def check_ends(job: PathJob) -> None:
    """Raise DataError if the tensors of both differ in name or shape, or have a dtype without a line."""
    with job.setup.open(job.files[0]) as first, job.setup.open(job.files[1]) as second:
        check_match(first, second, converted=True)
        check_averaged(first)


def read_ends(job: PathJob, names: set[str]) -> Ends:
    """Read both state dicts with the model's names; of two dtypes of a tensor both get the wider one.

    Raises:
        DataError: If a number is not finite, naming the tensor.
    """
    first, second = (dict(_read_end(job, number, names)) for number in (0, 1))
    for name, tensor in first.items():
        kind = torch.promote_types(tensor.dtype, second[name].dtype)
        first[name], second[name] = tensor.to(kind), second[name].to(kind)
    return first, second


def _read_end(job: PathJob, number: int, names: set[str]) -> State:
    with job.setup.open(job.files[number]) as checkpoint:
        state = checkpoint.state_dict()
    with error_context(f"{job.files[number]}: "):
        for name, tensor in state.items():
            require_finite(name, tensor)
    return unwrapped(state, names)


def aligned(job: PathJob, tensors: Ends, subject: Subject, progress: Progress) -> tuple[Ends, Record]:
    """Put B's channels in A's order and write the result to aligned.safetensors of the path, unless it exists.

    Returns:
        The state dicts of A and of aligned B, and a record with both distances and the change of B's outputs.

    Raises:
        DataError: If B cannot be aligned, naming both files.
    """
    ledger, options = job.ledger, job.options
    if ledger.aligned.exists():
        with open_checkpoint(ledger.aligned) as checkpoint:
            if ALIGNMENT in checkpoint.raw_metadata:
                return (tensors[0], checkpoint.state_dict()), json.loads(checkpoint.raw_metadata[ALIGNMENT])
    with error_context(f"{job.files[0]}, {job.files[1]}: "):
        alignment = _alignment(tensors, subject, options, progress)
    description: Record = {
        "to": distinct_names(job.files)[0],
        "method": options.align,
        "before": alignment.before,
        "after": alignment.after,
        "output_change": alignment.error,
    }
    with job.setup.open(job.files[1]) as checkpoint:
        added = {**_missing_metadata(checkpoint.metadata, subject), ALIGNMENT: json.dumps(description)}
        metadata = {**checkpoint.raw_metadata, **added}
    save_checkpoint(ledger.aligned, alignment.state, metadata, overwrite=True)
    return (tensors[0], alignment.state), description


def point_metadata(raw: Mapping[str, str], subject: Subject, description: Record) -> dict[str, str]:
    """Return the metadata of a point on a path: those of A that hold for other points, model, data and description."""
    shared = {name: value for name, value in raw.items() if name not in OF_A_POINT}
    added = _missing_metadata(CheckpointMetadata.from_strings(shared), subject)
    return {**shared, **added, "ckpt_probe.path": json.dumps(description)}


def _missing_metadata(metadata: CheckpointMetadata, subject: Subject) -> dict[str, str]:
    """Return model and data if the metadata name none, so that every other command can open the file."""
    stated: dict[str, Any] = {}
    if metadata.model is None:
        stated |= {"model": subject.model_name, "model_arguments": subject.model_arguments}
        stated |= {"classifier": subject.classifier}
    if metadata.data is None:
        stated |= {"data": subject.data.name, "data_arguments": subject.data.arguments}
    return CheckpointMetadata(**stated).to_strings()


def _alignment(tensors: Ends, subject: Subject, options: PathOptions, progress: Progress) -> Alignment:
    a, b = tensors
    splits = subject.data.splits
    split = splits.get("train", next(iter(splits.values())))
    model = subject.model.eval()
    inputs = one_tensor(split.batch(slice(0, PROVED_ON))[0], "alignment").to(subject.device)
    symmetry = trace_symmetry(model, inputs) if options.align_spec is None else read_spec(Path(options.align_spec), a)
    if options.align == "permutation":
        return proved(a, b, symmetry, match_weights(a, b, symmetry, progress=progress), model, inputs)
    with progress.task("activations", min(options.align_samples, len(split)), "samples") as bar:
        batches = _batches(split, options.align_samples, subject.device, bar)
        return proved(a, b, symmetry, match_activations(a, b, symmetry, model, batches), model, inputs)


def _batches(split: Split, samples: int, device: torch.device, bar: Task) -> Iterator[Tensor]:
    count = min(samples, len(split))
    for start in range(0, count, BATCH):
        inputs, _ = split.batch(slice(start, min(start + BATCH, count)))
        yield one_tensor(inputs, "alignment").to(device)
        bar.advance(len(inputs))
