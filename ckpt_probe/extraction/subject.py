"""Build the model of a series of checkpoints once, find its classifier and open its data."""

from collections.abc import Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import Checkpoint, CheckpointMetadata, State, library_versions, likely_heads
from ckpt_probe.checkpoints.folders import snapshot_in
from ckpt_probe.data import (
    LEFT_OUT,
    LabelledData,
    ModelHints,
    described_inputs,
    first_samples,
    in_model_order,
    in_width,
    load_data,
    notes_of,
    recorded_arguments,
)
from ckpt_probe.data import functions_named as data_functions
from ckpt_probe.data.language.windows import WindowSplit
from ckpt_probe.data.sources import WITHOUT_LABELS
from ckpt_probe.dumps import Provenance
from ckpt_probe.errors import CkptProbeError, UsageError, listed
from ckpt_probe.extraction.forward import Block, forward_blocks
from ckpt_probe.extraction.setup import Setup, Storage
from ckpt_probe.models import (
    HEADLESS,
    PENULTIMATE,
    Backbone,
    Batch,
    Head,
    Taps,
    arguments_taken,
    assumed_arguments,
    backbone_of,
    build_model,
    choose_device,
    choose_taps,
    class_names,
    find_head,
    is_backbone,
    is_extra_state,
    is_opaque,
    is_recorded_model,
    load_weights,
    model_arguments,
    model_beside,
    on_device,
    part_of,
    require_classes,
    run_once,
    wrapper_note,
)
from ckpt_probe.models import functions_named as model_functions
from ckpt_probe.plugins import functions_within, require_named
from ckpt_probe.progress import Progress, Task
from ckpt_probe.remote import local_data, local_texts

SAMPLE = 2
"""Number of samples on which a model is run to find its head."""


@dataclass
class Subject:
    """A model on its device, which takes the weights of one checkpoint after another, and the splits of its data.

    If the head has a scale that depends on the weights, `load` determines it again by running the model on `sample`.
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
    """Notes about changed tensor names, arguments from hyperparameters, and the storage of the dump."""

    taps: Taps = field(default_factory=Taps)
    """Layers whose rows are stored beside the classifier's input."""

    holds: str | None = None
    """Path of the checkpoint whose weights are loaded."""

    @property
    def classifier(self) -> str | None:
        """Name of the model's last linear layer; None if it has no head."""
        return self.head.name

    def load(self, state_dict: State, source: str, extra: Mapping[str, Any] | None = None) -> None:
        """Load a checkpoint's weights into the model.

        Args:
            state_dict: Tensors by name.
            source: Path of the checkpoint, for messages.
            extra: Extra state of modules.

        Raises:
            DataError: If they do not fit the model.
        """
        self.holds = None
        # The last forward pass may have left the model in a narrower dtype than these weights.
        double = any(tensor.dtype == torch.float64 for tensor in state_dict.values())
        device = torch.device("cpu") if double and self.device.type == "mps" else self.device
        dtype = torch.float64 if double else torch.float32
        self.model.to(device).to(dtype)
        notes = load_weights(self.model, state_dict, source=source, extra=extra)
        self.model_notes = tuple(dict.fromkeys((*self.model_notes, *notes)))
        if not self.head.settled:
            try:
                self.head = find_head(self.model, on_device(self.sample, device, dtype), self.head.name)
            except CkptProbeError as error:
                raise type(error)(f"{source}: {error}") from error
        self.holds = source

    @property
    def inputs(self) -> str:
        """One line that describes how inputs are prepared, with the source of each step."""
        return f"inputs: {self.data.name}: {described_inputs(self.data)}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about the model, the data, and the samples read so far."""
        read = {split: notes_of(self.data.split(split)) for split in self.splits}
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
            self.data.split(split),
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

    def rows_of(self, split: str, limit: int | None) -> int | None:
        """Return the number of rows of the first `limit` samples of a split; None if it is known only after reading."""
        samples = self.data.split(split)
        count = len(samples) if limit is None else min(limit, len(samples))
        if self.head.positions != "every":
            return count
        if isinstance(samples, WindowSplit):
            return samples.rows_of(count)
        return int((samples.labels[:count] != LEFT_OUT).sum()) if samples.labels.ndim == 2 else None

    def provenance(
        self, checkpoint: str, size: int, sha256: str, *, step: int | None, epoch: float | None, storage: Storage
    ) -> Provenance:
        """Return the provenance of a dump.

        Args:
            checkpoint: Name of the checkpoint.
            size: Its size in bytes.
            sha256: Hash of its content.
            step: Its training step, if known.
            epoch: Its epoch, if known.
            storage: Contents of the dump.
        """
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
            pooling=self._pooling,
            **(storage.of_layers() | {"layers": self.setup.layers} if self.taps.layers else {}),
        )

    @property
    def _pooling(self) -> str | None:
        if isinstance(self.head, Backbone):
            return self.head.pooling
        return self.setup.pooling if self.taps.layers else None


def open_subject(path: Path, setup: Setup) -> Subject:
    """Open model, data and classifier for a checkpoint.

    They are named by the setup, or else by the checkpoint's metadata. A user's function is called only if the setup
    names it, because the metadata of an untrusted file could name any function.

    Args:
        path: Checkpoint.
        setup: Model and data.

    Raises:
        UsageError: If neither names model and data, or only the metadata name a user's function; also as in
            `choose_taps`.
        DataError: If the checkpoint does not fit the model, the model does not accept the data, a split does not exist,
            or the classifier cannot be found; also as in `choose_taps`.
    """
    with setup.open(path) as checkpoint:
        directory, stated = checkpoint.config_directory, _stated_model(checkpoint, setup)
        data = _data(path, setup, checkpoint.metadata, _hints(checkpoint, setup, stated))
        splits = tuple(dict.fromkeys(setup.splits or data.splits))
        for split in splits:
            data.split(split)
        name, arguments = _model(checkpoint, setup, stated, data)
        device = choose_device(setup.device)
        model = build_model(name, arguments, initialised=False)
        remarks = [
            _hyperparameters_note(checkpoint, setup, stated),
            _assumption_note(checkpoint, setup, stated),
            wrapper_note(checkpoint.names, set(model.state_dict())),
            _opaque_note(checkpoint),
        ]
        remarks += fill(model, checkpoint)
        model.to(device)
        named = setup.classifier or checkpoint.metadata.classifier
        inputs = None
        try:
            data = in_model_order(data, class_names(model))
            sample = part_of(first_samples(next(iter(data.splits.values())), SAMPLE)[0], slice(0, SAMPLE))
            inputs = on_device(sample, device)
            head = find_rows(model, inputs, named, setup.pooling, tapped=setup.layers != PENULTIMATE)
            taps = choose_taps(model, inputs, head, setup.layers, setup.pooling)
            classes = len(head_parameters(model, head)[0])
            if not isinstance(head, Backbone):
                require_classes(classes, data.classes, data.class_names)
                data = in_width(data, classes)
        except CkptProbeError as error:
            hint = _channels_hint(model, inputs, data)
            raise type(error)(f"{path}: model {name}, data {data.name}: {error}{hint}") from error
    notes = tuple(note for note in remarks if note)
    if directory is not None:
        name = name.replace(str(local_texts(directory)), str(directory))
    return Subject(model, name, arguments, data, splits, head, sample, setup, device, notes, taps)


def model_of(checkpoint: Checkpoint, setup: Setup) -> tuple[str, dict[str, Any]]:
    """Return name and complete arguments of a checkpoint's model, without the sizes that its data would give.

    Raises:
        UsageError: As in `open_subject`.
    """
    return _model(checkpoint, setup, _stated_model(checkpoint, setup), None)


def fill(model: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Load weights and extra state into a model; return notes. Raises DataError if they do not fit."""
    state, extra = checkpoint.state_dict(), checkpoint.extra_state()
    return load_weights(model, state, source=str(checkpoint.path), extra=extra, state_key=checkpoint.state_key)


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
        raise UsageError(f"--pooling {pooling}: the model has a head, and its rows are the classifier's inputs")
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
            how = f"; add --data-argument channels={wanted}" if data.preparation else ""
            return (
                f"; the model takes images of {wanted} {'channel' if wanted == 1 else 'channels'}, not {channels}{how}"
            )
    return ""


def _hints(checkpoint: Checkpoint, setup: Setup, stated: tuple[str | None, dict[str, Any]]) -> ModelHints:
    """Return the model as data may know it; with the sizes of the checkpoint's own tensors if the data ask for them."""
    name, stated_arguments = stated
    arguments = {**stated_arguments, **(setup.model_arguments or {})}
    complete = None
    if name is not None and not model_functions(name):
        complete = partial(model_arguments, name, arguments, tensors=_shapes(checkpoint))
    path = checkpoint.path
    directory = local_texts(snapshot_in(path) if path.is_dir() else path.parent)
    return ModelHints(name, arguments, directory, complete=complete)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {tensor: checkpoint.shape(tensor) for tensor in checkpoint.names}


def _data(path: Path, setup: Setup, metadata: CheckpointMetadata, hints: ModelHints) -> LabelledData:
    name = setup.data or metadata.data
    if name is None:
        raise UsageError(f"{path}: does not name its data; use --data, such as idx:DIR or package.module:function")
    stated = {} if setup.data_arguments else recorded_arguments(name, metadata.data, metadata.data_arguments)
    arguments = setup.data_arguments or stated
    hints = replace(hints, arguments_source="the checkpoint's metadata" if stated else "argument")
    if setup.unlabelled:
        arguments = {**arguments, WITHOUT_LABELS: True}
    if functions := data_functions(name):
        require_named(functions, setup.data, path, f"--data {name}")
        require_named(functions_within(stated), setup.data, path, f"--data {name} --data-arguments …")
    with local_data(name) as local:
        data = load_data(local, arguments, hints=hints, workers=setup.data_workers)
    return data if local == name else replace(data, name=name)


def _stated_model(checkpoint: Checkpoint, setup: Setup) -> tuple[str | None, dict[str, Any]]:
    """Return the model's name, from the setup, the metadata or a file beside the checkpoint, and stated arguments.

    If the setup names another model than the metadata, the arguments are those hyperparameters of a Lightning module
    that the model accepts.
    """
    metadata = checkpoint.metadata
    if setup.model is None and metadata.model is None:
        directory = checkpoint.config_directory
        return model_beside(checkpoint.path if directory is None else local_texts(directory)) or (None, {})
    if setup.model is None or is_recorded_model(setup.model, metadata.model):
        return setup.model or metadata.model, dict(metadata.model_arguments)
    return setup.model, arguments_taken(setup.model, checkpoint.hyperparameters)


def _hyperparameters_note(
    checkpoint: Checkpoint, setup: Setup, stated: tuple[str | None, dict[str, Any]]
) -> str | None:
    """Return a sentence about model arguments that are taken from the checkpoint's hyperparameters."""
    if setup.model is None or is_recorded_model(setup.model, checkpoint.metadata.model):
        return None
    used = {name: value for name, value in stated[1].items() if name not in (setup.model_arguments or {})}
    values = ", ".join(f"{name}={value}" for name, value in used.items())
    return f"model arguments from the checkpoint's hyperparameters: {values}" if values else None


def _opaque_note(checkpoint: Checkpoint) -> str | None:
    """Return a sentence about extra state of modules that is not handed to them."""
    extra = {name: checkpoint.read(name) for name in checkpoint.names if is_extra_state(name)}
    names = [name for name, value in {**extra, **checkpoint.extra_state()}.items() if is_opaque(value)]
    if not names:
        return None
    return f"extra state that is bytes, which a module may unpickle, is left out: {listed(names)}"


def _assumed(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    """Return arguments that a framework sets for a file like this one; metadata that name the model lack none."""
    return {} if name == checkpoint.metadata.model else assumed_arguments(name)


def _assumption_note(checkpoint: Checkpoint, setup: Setup, stated: tuple[str | None, dict[str, Any]]) -> str | None:
    """Return a sentence about arguments that are assumed, since neither the file nor the caller states them."""
    name, stated_arguments = stated
    stated_arguments = {**stated_arguments, **(setup.model_arguments or {})}
    assumed = {} if name is None else _assumed(checkpoint, name)
    values = ", ".join(f"{key}={value}" for key, value in assumed.items() if key not in stated_arguments)
    if not values:
        return None
    return (
        f"model {name}: {values} is assumed, as its library sets it for pretrained weights; no file records it: state "
        "it among the model's arguments if the network was trained otherwise"
    )


def _model(
    checkpoint: Checkpoint, setup: Setup, stated: tuple[str | None, dict[str, Any]], data: LabelledData | None
) -> tuple[str, dict[str, Any]]:
    name, stated_arguments = stated
    path = checkpoint.path
    if name is None:
        arch = checkpoint.facts.get("arch")
        likely = f" ({arch!r} stands in the file: perhaps timm:{arch} or torchvision:{arch})" if arch else ""
        kinds = "timm:NAME, hf:DIR or package.module:function"
        raise UsageError(f"{path}: does not name its model; use --model, such as {kinds}{likely}")
    chosen = setup.model_arguments or {}
    stated_arguments = {key: value for key, value in stated_arguments.items() if key not in chosen}
    if functions := model_functions(name):
        require_named(functions, setup.model, path, f"--model {name}")
        require_named(functions_within(stated_arguments), setup.model, path, f"--model {name} --model-arguments …")
    shape, classes, padding = (None, None, None) if data is None else (data.input_shape, data.classes, data.padding)
    if data is None and (heads := likely_heads(checkpoint.layout)):
        classes = heads[0].classes
    assumed = _assumed(checkpoint, name)
    complete = {**assumed, **stated_arguments, **chosen}
    tensors = _shapes(checkpoint)
    known = {"input_shape": shape, "classes": classes, "padding": padding, "tensors": tensors}
    return name, model_arguments(name, complete, **known)
