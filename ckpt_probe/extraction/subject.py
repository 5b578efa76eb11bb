"""The subject of an extraction: a model that takes the weights of one checkpoint after another, and its data."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import State, library_versions
from ckpt_probe.data import LEFT_OUT, LabelledData, Streaming, count_of, names_of
from ckpt_probe.data.documents import WindowSplit
from ckpt_probe.dumps import Provenance
from ckpt_probe.errors import error_context
from ckpt_probe.extraction.config import Setup, Storage
from ckpt_probe.extraction.forward import Block, forward_blocks
from ckpt_probe.models import Backbone, Batch, Head, Taps, as_taken_by, fill_model, find_head, head_parameters
from ckpt_probe.progress import Progress, Task


@dataclass
class Subject:
    """A model on its device, which takes the weights of one checkpoint after another, and the splits of its data.

    Attributes:
        model: The model.
        model_name: Its name.
        model_arguments: Its complete arguments.
        data: The data.
        splits: Names of the splits that are used.
        head: Classifier of the model. If its scale depends on the weights, `load` determines it again.
        weights: Current weights of the classifier, shape (C, D), float64; C is 0 for a model without a head.
        bias: Current bias of the classifier, shape (C,), if it has one.
        scored: Whether predictions and losses are computed in place of logits; see `is_scored`.
        inputs: One line that describes how inputs are prepared, with the source of each step.
        sample: Inputs of a few samples.
        setup: Settings of the extraction.
        device: Device of the forward passes.
        model_notes: Notes about changed tensor names and about arguments that the user did not state.
        taps: Layers whose rows are stored beside the classifier's input.
        loaded_from: Path of the checkpoint whose weights are loaded.
    """

    model: nn.Module
    model_name: str
    model_arguments: dict[str, Any]
    data: LabelledData
    splits: tuple[str, ...]
    head: Head | Backbone
    weights: Tensor
    bias: Tensor | None
    scored: bool
    inputs: str
    sample: Batch
    setup: Setup
    device: torch.device
    model_notes: tuple[str, ...] = ()
    taps: Taps = field(default_factory=Taps)
    loaded_from: str | None = None

    @property
    def classifier(self) -> str | None:
        """Name of the model's last linear layer; None if it has no head."""
        return self.head.name

    def load(self, state_dict: State, source: str, extra: Mapping[str, Any] | None = None) -> None:
        """Load a checkpoint's weights into the model.

        Args:
            state_dict: Tensors by name.
            source: Path of the checkpoint.
            extra: Extra state of modules.

        Raises:
            DataError: If they do not fit the model.
        """
        self.loaded_from = None
        notes = fill_model(self.model, self.device, state_dict, source, extra)
        self.model_notes = tuple(dict.fromkeys((*self.model_notes, *notes)))
        if not self.head.settled:
            with error_context(f"{source}: "):
                self.head = find_head(self.model, as_taken_by(self.model, self.sample), self.head.name)
        self.weights = torch.empty(0, 0)  # frees the earlier weights, which may be large, before others are made
        self.weights, self.bias = head_parameters(self.model, self.head)
        self.loaded_from = source

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about the model, the data, and the samples read so far."""
        return (*self.model_notes, *self.data.notes, *self.data.notes_of_reading(self.splits))

    def forward(
        self,
        split: str,
        storage: Storage | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        progress: Progress | None = None,
        bar: Task | None = None,
    ) -> Generator[Block, None, None]:
        """Yield features, labels, logits and layers of one split in blocks; see `Storage` and `forward_blocks`."""
        storage = storage or Storage()
        return forward_blocks(
            self.model,
            self.head,
            self.data.splits[split],
            batch_size=self.setup.batch_size,
            device=self.device,
            dtype=getattr(torch, storage.dtype),
            limit=storage.limit,
            start=start,
            stop=stop,
            taps=self.taps,
            progress=progress,
            bar=bar,
        )

    def names_of_rows(self, split: str, limit: int | None) -> list[str] | None:
        """Return the names of the readable first `limit` samples; None without names, or if rows are not samples."""
        samples = self.data.splits[split]
        names = names_of(samples)
        if names is None or self.head.positions == "every":
            return None
        left_out = samples.left_out if isinstance(samples, Streaming) else {}
        return [name for index, name in enumerate(names[:limit]) if index not in left_out]

    def rows_of(self, split: str, limit: int | None) -> int | None:
        """Return the number of rows of the first `limit` samples of a split; None if it is known only after reading."""
        samples = self.data.splits[split]
        count = count_of(samples, limit)
        if self.head.positions != "every":
            return count
        if isinstance(samples, WindowSplit):
            return samples.rows_of(count)
        return int((samples.labels[:count] != LEFT_OUT).sum()) if samples.labels.ndim == 2 else None

    def provenance(
        self,
        checkpoint: str,
        *,
        step: int | None,
        size: int,
        sha256: str,
        epoch: float | None,
        storage: Storage,
        request: dict[str, Any] | None = None,
    ) -> Provenance:
        """Return the provenance of a dump.

        Args:
            checkpoint: Name of the checkpoint.
            step: Its training step, if known.
            size: Its size in bytes.
            sha256: Hash of its content.
            epoch: Its epoch, if known.
            storage: Contents of the dump.
            request: Call that makes the dump, as `request_of` returns it.
        """
        pooling = self.head.pooling if isinstance(self.head, Backbone) else None
        layers: dict[str, Any] = {}
        if self.taps.layers:
            pooling = pooling if isinstance(self.head, Backbone) else self.setup.pooling
            layers = {"layer_store": storage.layer_store, "layers": self.setup.layers}
        return Provenance(
            checkpoint=checkpoint,
            checkpoint_size=size,
            checkpoint_sha256=sha256,
            step=step,
            epoch=epoch,
            model=self.model_name,
            model_arguments=self.model_arguments,
            data=self.data.name,
            data_arguments=self.data.arguments,
            classifier=self.classifier,
            forward_dtype=storage.dtype,
            feature_dtype=storage.feature_dtype,
            splits=self.splits,
            limit=storage.limit,
            logits=storage.with_logits,
            store=storage.store,
            max_rows=storage.max_rows,
            rows_seed=None if storage.max_rows is None else storage.rows_seed,
            device=str(self.device),
            versions=library_versions(),
            pooling=pooling,
            subset_rows=storage.subset_rows,
            subset_seed=storage.subset_seed,
            request=request,
            **layers,
        )
