"""What a dump keeps of the layers of a split: moments or rows of each, and one subset of rows of them all."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ckpt_probe.dumps import PENULTIMATE, DumpWriter, as_stored
from ckpt_probe.extraction.setup import Storage
from ckpt_probe.models import Taps
from ckpt_probe.moments import Moments
from ckpt_probe.moments.gathering import Gathering
from ckpt_probe.moments.subset import Subset


class LayerStore:
    """Keeps, of one split, what `storage` says of every tap; of the classifier's input only its part of the subset.

    classes: their number. labelled: whether rows have labels; else moments are those of one class. Each layer's moments
    may take an equal share of the memory; they are those of rows as they would be stored. Nothing is kept where there
    are no taps.
    """

    def __init__(
        self,
        writer: DumpWriter,
        storage: Storage,
        taps: Taps,
        split: str,
        classes: int | None,
        *,
        labelled: bool = True,
    ) -> None:
        self._writer = writer
        self._storage = storage
        self._taps = taps
        self._split = split
        self._labelled = labelled
        self._subset = Subset(storage.similarity_rows, storage.similarity_seed)
        self._places: dict[str, str] = {}
        self._gathered: dict[str, Gathering] = {}
        for tap in taps.layers:
            width = tap.width if storage.layer_store != "moments" else None
            told = {"depth": tap.depth, "pooling": tap.pooling, "labelled": labelled}
            self._places[tap.layer] = writer.start_layer(split, tap.layer, **told, width=width)
            if storage.layer_store != "features":
                share = storage.memory // len(taps.layers)
                moments = Moments(classes if labelled else None, memory=share, only=None if labelled else ["sample"])
                self._gathered[tap.layer] = Gathering(moments)
        if taps.layers:
            writer.start_layer(split, PENULTIMATE, depth=1.0, pooling="features")

    def append(self, features: Tensor, labels: Tensor, layers: Mapping[str, Tensor]) -> None:
        """Add a block: the classifier's input (n, D), labels (n,), and the rows of each tap."""
        if not self._taps.layers:
            return
        counted = labels if self._labelled else torch.zeros_like(labels)
        for layer, rows in layers.items():
            if self._storage.layer_store != "moments":
                self._writer.append(self._places[layer], rows, labels)
            if layer in self._gathered:
                self._gathered[layer].add(self._stored(rows, self._places[layer]), counted)
        self._subset.update(len(labels), {**layers, PENULTIMATE: features})

    def finish(self) -> None:
        """Write what was accumulated, all rows having come."""
        if not self._taps.layers:
            return
        for layer, gathering in self._gathered.items():
            gathering.finish()
            moments = gathering.moments
            if moments.samples:
                state = moments.state_dict()
                place, numbers = self._places[layer], {"samples": moments.samples}
                self._writer.write_moments(place, state, numbers, labelled=self._labelled)
        self._writer.write_similarity(self._split, self._subset.indices, self._subset.seed, self._subset.rows)

    def _stored(self, rows: Tensor, place: str) -> Tensor:
        where = f"{self._writer.path}: {place}"
        return torch.from_numpy(as_stored(rows, self._storage.feature_dtype, where))
