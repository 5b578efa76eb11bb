"""Build the model of a checkpoint, find its classifier and open its data; later checkpoints replace the weights."""

from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import Checkpoint, State, library_versions
from ckpt_probe.data import (
    LEFT_OUT,
    LabelledData,
    Streaming,
    described_inputs,
    first_samples,
    in_model_order,
    in_width,
    names_of,
    notes_of,
)
from ckpt_probe.data.documents import WindowSplit
from ckpt_probe.dumps import Provenance
from ckpt_probe.errors import CkptProbeError, UsageError, listed
from ckpt_probe.extraction.config import Setup, Storage
from ckpt_probe.extraction.forward import Block, forward_blocks
from ckpt_probe.extraction.sources import choose_model, complete_model, open_data
from ckpt_probe.models import (
    HEADLESS,
    PENULTIMATE,
    Backbone,
    Batch,
    Head,
    Taps,
    backbone_of,
    build_model,
    choose_device,
    choose_taps,
    class_names,
    find_head,
    is_backbone,
    is_extra_state,
    is_opaque,
    load_weights,
    on_device,
    part_of,
    require_classes,
    run_once,
    unsteadiness,
    wrapper_note,
)
from ckpt_probe.progress import Progress, Task
from ckpt_probe.remote import local_texts

SAMPLE = 2
"""Number of samples on which a model is run to find its head."""


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
        device, dtype, notes = fill(self.model, self.device, state_dict, source, extra)
        self.model_notes = tuple(dict.fromkeys((*self.model_notes, *notes)))
        if not self.head.settled:
            try:
                self.head = find_head(self.model, on_device(self.sample, device, dtype), self.head.name)
            except CkptProbeError as error:
                raise type(error)(f"{source}: {error}") from error
        self.loaded_from = source

    @property
    def inputs(self) -> str:
        """One line that describes how inputs are prepared, with the source of each step."""
        return f"inputs: {self.data.name}: {described_inputs(self.data)}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about the model, the data, and the samples read so far."""
        read = {split: notes_of(self.data.splits[split]) for split in self.splits}
        of_splits = [f"split {split}: {note}" for split, notes in read.items() for note in notes]
        return (*self.model_notes, *self.data.notes, *of_splits)

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return the current weights (C, D) and bias (C,) of the classifier; C is 0 for a model without a head."""
        return head_parameters(self.model, self.head)

    def forward(
        self,
        split: str,
        *,
        dtype: torch.dtype = torch.float32,
        limit: int | None = None,
        start: int = 0,
        stop: int | None = None,
        progress: Progress | None = None,
        bar: Task | None = None,
    ) -> Generator[Block, None, None]:
        """Yield features, labels, logits and layers of one split in blocks; see `forward_blocks`."""
        return forward_blocks(
            self.model,
            self.head,
            self.data.splits[split],
            batch_size=self.setup.batch_size,
            device=self.device,
            dtype=dtype,
            limit=limit,
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
        count = len(samples) if limit is None else min(limit, len(samples))
        if self.head.positions != "every":
            return count
        if isinstance(samples, WindowSplit):
            return samples.rows_of(count)
        return int((samples.labels[:count] != LEFT_OUT).sum()) if samples.labels.ndim == 2 else None

    def provenance(
        self,
        checkpoint: str,
        size: int,
        sha256: str,
        *,
        step: int | None,
        epoch: float | None,
        storage: Storage,
        request: dict[str, Any] | None = None,
    ) -> Provenance:
        """Return the provenance of a dump.

        Args:
            checkpoint: Name of the checkpoint.
            size: Its size in bytes.
            sha256: Hash of its content.
            step: Its training step, if known.
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


def open_subject(path: Path, setup: Setup) -> Subject:
    """Open a checkpoint, and build its model and open its data; see `build_subject`."""
    with setup.open(path) as checkpoint:
        return build_subject(checkpoint, setup)


def build_subject(checkpoint: Checkpoint, setup: Setup) -> Subject:
    """Build the model of an open checkpoint with its weights, find the classifier, and open the data.

    Model and data are named by the settings, or else by the checkpoint's metadata. A user's function is called only if
    the settings name it, because the metadata of an untrusted file could name any function.

    Args:
        checkpoint: Open checkpoint.
        setup: Model and data.

    Raises:
        UsageError: If neither names model and data, or only the metadata name a user's function; also as in
            `choose_taps`.
        DataError: If the checkpoint does not fit the model, the model does not accept the data, a split does not exist,
            or the classifier cannot be found; also as in `choose_taps`.
    """
    path = checkpoint.path
    choice = choose_model(checkpoint, setup)
    data = open_data(checkpoint, setup, choice)
    splits = tuple(dict.fromkeys(setup.splits or data.splits))
    for split in splits:
        data.split(split)
    name, arguments = complete_model(checkpoint, setup, choice, data)
    target = choose_device(setup.device)
    model = build_model(name, arguments, initialised=False, tensors=checkpoint.shapes)
    notes = [*choice.notes, wrapper_note(checkpoint.names, set(model.state_dict())), _opaque_note(checkpoint)]
    device, dtype, load_notes = fill(
        model, target, checkpoint.state_dict(), str(path), checkpoint.extra_state(), checkpoint.state_key
    )
    named = setup.classifier or checkpoint.metadata.classifier
    inputs = None
    try:
        data = in_model_order(data, class_names(model))
        sample = part_of(first_samples(next(iter(data.splits.values())), SAMPLE)[0], slice(0, SAMPLE))
        inputs = on_device(sample, device, dtype)
        head = find_rows(model, inputs, named, setup.pooling, tapped=setup.layers != PENULTIMATE)
        taps = choose_taps(model, inputs, head, setup.layers, setup.pooling)
        load_notes = (*load_notes, unsteadiness(model, inputs))
        if not isinstance(head, Backbone):
            classes = len(head.parameters(model)[0])
            require_classes(classes, data.classes, data.class_names)
            data = in_width(data, classes)
    except CkptProbeError as error:
        hint = _channels_hint(model, inputs, data)
        raise type(error)(f"{path}: model {name}, data {data.name}: {error}{hint}") from error
    all_notes = tuple(note for note in (*notes, *load_notes) if note)
    if checkpoint.config_directory is not None:
        name = name.replace(str(local_texts(checkpoint.config_directory)), str(checkpoint.config_directory))
    return Subject(
        model, name, arguments, data, splits, head, sample, setup, target, all_notes, taps, loaded_from=str(path)
    )


def fill(
    model: nn.Module,
    target: torch.device,
    state: State,
    source: str,
    extra: Mapping[str, Any] | None = None,
    state_key: str | None = None,
) -> tuple[torch.device, torch.dtype, tuple[str, ...]]:
    """Load a checkpoint's weights and extra state into a model.

    Args:
        model: The model, which is moved to its device, and to the dtype that represents the weights exactly.
        target: Device of the forward passes.
        state: Tensors by name.
        source: Path of the checkpoint.
        extra: Extra state of modules.
        state_key: Key of the tensors in the checkpoint.

    Returns:
        Device and dtype of the model, and notes.

    Raises:
        DataError: If the weights do not fit.
    """
    double = any(tensor.dtype == torch.float64 for tensor in state.values())
    device = torch.device("cpu") if double and target.type == "mps" else target
    dtype = torch.float64 if double else torch.float32
    # The last forward pass may have left the model in a narrower dtype.
    model.to(device).to(dtype)
    return device, dtype, load_weights(model, state, source=source, extra=extra, state_key=state_key)


def find_rows(
    model: nn.Module, sample: Batch, named: str | None, pooling: str | None, *, tapped: bool = False
) -> Head | Backbone:
    """Return a model's head, or its backbone if it has no head.

    Args:
        model: Model.
        sample: Inputs of two samples.
        named: Name of the last linear layer, or "none" for a model without a head; None to find it.
        pooling: Pooling of the tokens of a model without a head, and of other layers.
        tapped: Whether other layers are stored too.

    Raises:
        UsageError: If pooling is set for a model with a head and no other layer is stored; also as in `find_head` and
            `backbone_of`.
    """
    if named == HEADLESS or (named is None and is_backbone(model, sample)):
        return backbone_of(model, sample, pooling)
    if pooling is not None and not tapped:
        raise UsageError(f"`pooling={pooling!r}`: the model has a head, and its rows are the classifier's inputs")
    return find_head(model, sample, named)


def head_parameters(model: nn.Module, head: Head | Backbone) -> tuple[Tensor, Tensor | None]:
    """Return weights (C, D) and bias (C,) of a model's head on the CPU, as float64, which represents them exactly."""
    with torch.no_grad():
        weights, bias = head.parameters(model)
    return weights.detach().cpu().double(), None if bias is None else bias.detach().cpu().double()


def _channels_hint(model: nn.Module, inputs: Batch | None, data: LabelledData) -> str:
    """Return how to give a model images of as many channels as it takes, "" if it fails for another reason."""
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
        return ""
    channels, wanted = inputs.shape[1], 4 - inputs.shape[1]
    try:
        run_once(model, inputs)
    except CkptProbeError:
        with suppress(CkptProbeError):
            run_once(model, inputs[:, :1].expand(-1, wanted, -1, -1))
            plural = "channel" if wanted == 1 else "channels"
            advice = f"; add `data_arguments={ {'channels': wanted} }`" if data.preparation else ""
            return f"; the model takes images of {wanted} {plural}, not {channels}{advice}"
    return ""


def _opaque_note(checkpoint: Checkpoint) -> str | None:
    """Return a sentence about extra state of modules that is not handed to them."""
    extra = {name: checkpoint.read(name) for name in checkpoint.names if is_extra_state(name)}
    names = [name for name, value in {**extra, **checkpoint.extra_state()}.items() if is_opaque(value)]
    if not names:
        return None
    return f"extra state that is bytes, which a module may unpickle, is left out: {listed(names)}"
