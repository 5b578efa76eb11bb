"""What a dump keeps of each split: its rows as they come, class moments of them, or both."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ckpt_probe.dumps import DumpWriter, as_stored
from ckpt_probe.extraction.layers import LayerStore
from ckpt_probe.extraction.setup import Storage
from ckpt_probe.models import Taps
from ckpt_probe.moments import Moments
from ckpt_probe.moments.gathering import Gathering
from ckpt_probe.moments.quality import Head


class StoreWriter:
    """A DumpWriter, opened and left as such, that keeps of each split what `storage` says.

    Moments are those of the features as they would be stored, so that both kinds of dump give the same numbers.
    """

    def __init__(self, writer: DumpWriter, storage: Storage, taps: Taps | None = None) -> None:
        self._writer = writer
        self._storage = storage
        self._taps = taps or Taps()
        self._store = storage.store
        self._dtype = storage.feature_dtype
        self._memory = storage.memory
        self._head: Head | None = None

    def __enter__(self) -> "StoreWriter":
        self._writer.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._writer.__exit__(kind, error, trace)

    def write_classifier(self, weights: Tensor, bias: Tensor | None = None) -> None:
        """As the writer's."""
        self._head = Head.of(weights, bias)
        self._writer.write_classifier(weights, bias)

    def start_split(self, name: str, samples: int | None = None, *, logits: bool = True) -> None:
        """As the writer's; without `logits`, accuracy and loss are those of the classifier's weights."""
        self._logits = logits
        classes = None if self._head is None else len(self._head.weights)
        self._gathering = Gathering(Moments(classes, memory=self._memory), self._head)
        if self._store != "moments":
            self._writer.start_split(name, samples, logits=logits)
        self._layers = LayerStore(self._writer, self._storage, self._taps, name, classes)

    def append(
        self,
        name: str,
        features: Tensor,
        labels: Tensor,
        logits: Tensor,
        layers: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a block of rows of a split, and those of its layers beside the classifier's input."""
        if self._store != "moments":
            self._writer.append(name, features, labels, logits)
        if self._store != "features":
            stored = torch.from_numpy(as_stored(features, self._dtype, f"{self._writer.path}: {name}"))
            self._gathering.add(stored, labels, logits.float() if self._logits else None)
        self._layers.append(features, labels, layers or {})

    def write_class_names(self, names: Sequence[str]) -> None:
        """As the writer's."""
        self._writer.write_class_names(names)

    def finish_split(self, name: str, *, left_out: int = 0) -> None:
        """Write what was accumulated of a split that has got all its rows but those of samples that were left out."""
        if self._store != "features":
            self._gathering.finish()
            moments, quality = self._gathering.moments, self._gathering.quality
            self._writer.write_moments(name, moments.state_dict(), {"samples": moments.samples, **quality.to_numbers()})
        self._writer.leave_out(name, left_out)
        self._layers.finish()
