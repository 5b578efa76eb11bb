"""The dump of one point on a path, which `analyze` reads as it does any other."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ckpt_probe.checkpoints import library_versions
from ckpt_probe.dumps import DumpWriter, Provenance
from ckpt_probe.extraction import Subject


@contextmanager
def point_writer(
    path: Path, name: str, alpha: float, subject: Subject, splits: tuple[str, ...]
) -> Iterator[DumpWriter]:
    """A writer of the dump of the weights that a subject's model has now, its classifier written.

    The point is no file: size and hash are those of its tensors. A dump's name has a number, which would be read as its
    step; the step is therefore given, α in millionths, so that a folder of dumps is in the order of the path.
    """
    layer: Any = subject.model.get_submodule(subject.classifier)
    tensors = subject.model.state_dict()
    provenance = Provenance(
        checkpoint=name,
        checkpoint_size=sum(tensor.nbytes for tensor in tensors.values()),
        checkpoint_sha256=_content(tensors),
        step=round(alpha * 1e6),
        epoch=None,
        model=subject.model_name,
        model_arguments=subject.model_arguments,
        data=subject.data.name,
        data_arguments=subject.data.arguments,
        classifier=subject.classifier,
        forward_dtype="float32",
        feature_dtype="float32",
        splits=splits,
        limit=None,
        logits=True,
        store="features",
        device=str(subject.device),
        versions=library_versions(),
    )
    classes, features = layer.weight.shape
    # A point whose dump is there but whose record is not is evaluated again.
    with DumpWriter(path, provenance, classes=classes, features=features, overwrite=True) as writer:
        bias = None if layer.bias is None else layer.bias.detach().cpu().double()
        writer.write_classifier(layer.weight.detach().cpu().double(), bias)
        yield writer


def _content(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(name.encode())
        found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return found.hexdigest()
