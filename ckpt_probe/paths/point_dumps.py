"""The dump of one point on a path, which `analyze` reads as it does any other."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ckpt_probe.dumps import DumpWriter
from ckpt_probe.extraction import Storage, Subject


@contextmanager
def point_writer(path: Path, name: str, alpha: float, subject: Subject) -> Iterator[DumpWriter]:
    """A writer of the dump of the weights that a subject's model has now, its classifier written.

    The point is no file: size and hash are those of its tensors. A dump's name has a number, which would be read as its
    step; the step is therefore given, α in millionths, so that a folder of dumps is in the order of the path.
    """
    tensors = {name: entry for name, entry in subject.model.state_dict().items() if isinstance(entry, Tensor)}
    size, sha256 = sum(tensor.nbytes for tensor in tensors.values()), _content(tensors)
    provenance = subject.provenance(name, size, sha256, step=round(alpha * 1e6), epoch=None, storage=Storage())
    weights, bias = subject.parameters()
    classes, features = weights.shape
    # A point whose dump is there but whose record is not is evaluated again.
    with DumpWriter(path, provenance, classes=classes, features=features, overwrite=True) as writer:
        writer.write_classifier(weights, bias)
        if subject.data.class_names:
            writer.write_class_names(subject.data.class_names[:classes])
        yield writer


def _content(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(name.encode())
        found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return found.hexdigest()
