"""Extract one dump from a model and a data loader of the caller."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

import ckpt_probe.models as models
from ckpt_probe.data import impossible_label
from ckpt_probe.dumps import require_split_name
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.extraction.building import SAMPLE
from ckpt_probe.extraction.config import Storage
from ckpt_probe.extraction.forward import forward_batches
from ckpt_probe.extraction.writer import store_writer
from ckpt_probe.files import refuse_existing
from ckpt_probe.keywords import as_sequence
from ckpt_probe.metrics.rows import as_labels, as_tensor
from ckpt_probe.models import Batch
from ckpt_probe.moments import MEMORY
from ckpt_probe.progress import NullProgress, Progress


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
    progress: Progress | None = None,
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
        progress: Receives a message if the model's results are random, or depend on the other samples of a batch.

    Returns:
        Path of the dump.

    Raises:
        UsageError: If `out` exists and `overwrite` is false, or the model is on several devices, or float64 for MPS.
        DataError: If there is no batch, inputs and labels do not fit, or the model has no such classifier.
    """
    if not isinstance(model, nn.Module):
        kind, instead = type(model).__name__, "extract_series(source, out) reads checkpoints from files"
        raise UsageError(f"`model`: expected a torch.nn.Module, found {kind}; {instead}")
    path, target, storage = Path(out), models.choose_device(device), Storage(store=store, memory=memory)
    refuse_existing(path, overwrite=overwrite)
    require_split_name(split)
    batches = _checked(loader)
    first = next(batches, None)
    if first is None:
        raise DataError("the data loader yielded no batch")
    with lent(model, target) as dtype:
        sample = models.on_device(models.part_of(first[0], slice(0, SAMPLE)), target, dtype)
        head = models.find_head(model, sample, classifier)
        if note := models.unsteadiness(model, sample):
            (progress or NullProgress()).message(note)
        taps = models.choose_taps(model, sample, head, ",".join(as_sequence(layers) or ()), pooling)
        weights, bias = models.head_parameters(model, head)
        scored = models.is_scored(head, len(weights))
        storage.require_fitting(*weights.shape, positions=scored)
        known = _of_classes(chain([first], batches), weights.shape[0])
        blocks = forward_batches(model, head, known, device=target, dtype=dtype, taps=taps)
        with store_writer(path, None, storage, weights, bias, taps=taps, overwrite=overwrite) as writer:
            writer.write_split(split, blocks, scores="scored" if scored else "logits")
    return path


@contextmanager
def lent(model: nn.Module, device: torch.device) -> Iterator[torch.dtype]:
    """Move a caller's model to a device and into evaluation mode for the duration of the `with`.

    At the end, also after an error, the training mode of every module and the device are restored.

    Yields:
        Dtype of the first floating-point parameter, which is not changed.

    Raises:
        UsageError: If the model is spread over several devices, or is float64 and the device is MPS.
    """
    tensors = [*model.parameters(), *model.buffers()]
    homes = list(dict.fromkeys(tensor.device for tensor in tensors))
    if len(homes) > 1:
        raise UsageError(f"the model is spread over {listed([str(home) for home in homes])}; move it to one device")
    kinds = list(dict.fromkeys(tensor.dtype for tensor in tensors if tensor.is_floating_point()))
    if device.type == "mps" and torch.float64 in kinds:
        raise UsageError(
            "the model is float64, which MPS does not support; pass `device='cpu'`, or convert it to float32"
        )
    try:
        model.to(device)
        with models.evaluating(model):
            yield kinds[0] if kinds else torch.float32
    finally:
        if homes:
            model.to(homes[0])


def _checked(loader: Iterable[tuple[Batch, Tensor]]) -> Iterator[tuple[Batch, Tensor]]:
    for number, batch in enumerate(loader):
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            parts = f" of {len(batch)}" if isinstance(batch, list | tuple | Mapping) else ""
            raise DataError(f"batch {number}: expected a pair (inputs, labels), found a {type(batch).__name__}{parts}")
        raw, raw_labels = batch
        # A user's model may also take complex tensors, which `as_tensor` refuses.
        if isinstance(raw, Mapping):
            inputs: Batch = {name: as_tensor(part, f"batch {number}: {name}") for name, part in raw.items()}
        else:
            inputs = raw if isinstance(raw, Tensor) else as_tensor(raw, f"batch {number}: inputs")
        labels = as_labels(raw_labels, f"batch {number}: labels").cpu().to(torch.int64)
        parts = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
        if any(not part.ndim or not labels.ndim or len(part) != len(labels) for part in parts) or not parts:
            shapes = f"{', '.join(str(tuple(part.shape)) for part in parts)} and {tuple(labels.shape)}"
            hint = "" if labels.ndim else "; pass a DataLoader, which makes batches of samples"
            raise DataError(f"batch {number}: inputs and labels: expected (n, …) and (n,), found {shapes}{hint}")
        yield inputs, labels


def _of_classes(batches: Iterable[tuple[Batch, Tensor]], classes: int) -> Iterator[tuple[Batch, Tensor]]:
    """Yield the batches after checking that their labels are classes of the model, as all metrics require."""
    for number, (inputs, labels) in enumerate(batches):
        if problem := impossible_label(labels, classes):
            raise DataError(f"batch {number}: {problem}, though the classifier gives {classes} logits")
        yield inputs, labels
