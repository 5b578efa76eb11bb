"""What is forwarded: a model built once, its classifier, and the data it is shown."""

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
)
from ckpt_probe.data import functions_named as data_functions
from ckpt_probe.data.language.windows import WindowSplit
from ckpt_probe.data.sources import UNLABELLED
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
from ckpt_probe.remote import by_address, here

SAMPLE = 2
"""Samples that a model is run on to find its head."""


@dataclass
class Subject:
    """A model on its device, ready to take one checkpoint's weights after another, and the splits that it is shown.

    Where the head has a scale that depends on the weights, `load` reads it anew by running the model on `sample`.
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
    said: tuple[str, ...] = ()
    """What was taken off the names of the checkpoint's tensors, what its hyperparameters give, and how it is stored."""

    taps: Taps = field(default_factory=Taps)
    """Layers whose rows are wanted beside the classifier's input."""

    holds: str | None = None
    """The checkpoint whose weights the model has."""

    @property
    def classifier(self) -> str | None:
        """The name of the model's last linear layer, None where it has no head."""
        return self.head.name

    def load(self, state_dict: State, source: str, extra: Mapping[str, Any] | None = None) -> None:
        """Put a checkpoint's weights, and its extra state of modules, into the model in place.

        Raises DataError naming `source` if they do not fit.
        """
        self.holds = None
        # The last forward pass left the model in its own dtype, into which these weights might not fit.
        double = any(tensor.dtype == torch.float64 for tensor in state_dict.values())
        place = torch.device("cpu") if double and self.device.type == "mps" else self.device
        kind = torch.float64 if double else torch.float32
        self.model.to(place).to(kind)
        notes = load_weights(self.model, state_dict, source=source, extra=extra)
        self.said = tuple(dict.fromkeys((*self.said, *notes)))
        if not self.head.settled:
            try:
                self.head = find_head(self.model, on_device(self.sample, place, kind), self.head.name)
            except CkptProbeError as error:
                raise type(error)(f"{source}: {error}") from error
        self.holds = source

    @property
    def inputs(self) -> str:
        """One line about how inputs are prepared, with the source of each step."""
        return f"inputs: {self.data.name}: {described_inputs(self.data)}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said: of names that were changed, of the data when loaded, and of the samples read so far."""
        read = {split: notes_of(self.data.split(split)) for split in self.splits}
        of_splits = [f"split {split}: {note}" for split, notes in read.items() for note in notes]
        return (*self.said, *self.data.notes, *of_splits)

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """The classifier's weights (C, D) and its bias (C,) where it has one, as the model has them now.

        Of a model without a head, weights of no class, (0, D).
        """
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
        """Features, labels, logits and layers of one split, block by block: see `forward_blocks`."""
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
        """How many rows the first `limit` samples of a split give; None where that is known when all have been seen."""
        held = self.data.split(split)
        count = len(held) if limit is None else min(limit, len(held))
        if self.head.positions != "every":
            return count
        if isinstance(held, WindowSplit):
            return held.rows_of(count)
        return int((held.labels[:count] != LEFT_OUT).sum()) if held.labels.ndim == 2 else None

    def provenance(
        self, checkpoint: str, size: int, sha256: str, *, step: int | None, epoch: float | None, storage: Storage
    ) -> Provenance:
        """Where the numbers of a dump of this subject come from, for the checkpoint of that name, size and hash."""
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
    """Model, data and classifier for a checkpoint: as named by the caller, else by the checkpoint's metadata.

    A function of anybody's is called only where the caller names it: a file's word is not enough, as it could name any.
    Raises UsageError where neither names them, or only the file names such a function; DataError where the checkpoint
    does not fit the model, the model does not take the data, the data have no such split, or the model's classifier
    cannot be found; both as `choose_taps`.
    """
    with setup.open(path) as checkpoint:
        stated = _stated_model(checkpoint, setup)
        data = _data(path, setup, checkpoint.metadata, _hints(checkpoint, setup, stated))
        splits = tuple(dict.fromkeys(setup.splits or data.splits))
        for split in splits:
            data.split(split)
        name, arguments = _model(checkpoint, setup, stated, data)
        device = choose_device(setup.device)
        model = build_model(name, arguments, initialised=False)
        remarks = [
            _told_note(checkpoint, setup, stated),
            _assumption_note(checkpoint, setup, stated),
            wrapper_note(checkpoint.names, set(model.state_dict())),
            _opaque_note(checkpoint),
        ]
        remarks += fill(model, checkpoint)
        model.to(device)
        named = setup.classifier or checkpoint.metadata.classifier
        shown = None
        try:
            data = in_model_order(data, class_names(model))
            sample = part_of(first_samples(next(iter(data.splits.values())), SAMPLE)[0], slice(0, SAMPLE))
            shown = on_device(sample, device)
            head = find_rows(model, shown, named, setup.pooling, tapped=setup.layers != PENULTIMATE)
            taps = choose_taps(model, shown, head, setup.layers, setup.pooling)
            classes = len(head_parameters(model, head)[0])
            if not isinstance(head, Backbone):
                require_classes(classes, data.classes, data.class_names)
                data = in_width(data, classes)
        except CkptProbeError as error:
            hint = _channels_hint(model, shown, data)
            raise type(error)(f"{path}: model {name}, data {data.name}: {error}{hint}") from error
    notes = tuple(note for note in remarks if note)
    # A model's directory at an address is in this process's own folder only.
    return Subject(model, by_address(name), arguments, data, splits, head, sample, setup, device, notes, taps)


def model_of(checkpoint: Checkpoint, setup: Setup) -> tuple[str, dict[str, Any]]:
    """The name and the complete arguments of a checkpoint's model, where no data are known that show their sizes.

    Raises UsageError as `open_subject`.
    """
    return _model(checkpoint, setup, _stated_model(checkpoint, setup), None)


def fill(model: nn.Module, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Load weights and extra state into a model; return notes. Raises DataError if they do not fit."""
    state, extra = checkpoint.state_dict(), checkpoint.extra_state()
    return load_weights(model, state, source=str(checkpoint.path), extra=extra, state_key=checkpoint.state_key)


def find_rows(
    model: nn.Module, sample: Batch, named: str | None, pooling: str | None, *, tapped: bool = False
) -> Head | Backbone:
    """A model's head, or what stands for it where the caller, or what the model returns, says that it has none.

    named: the last linear layer, or "none"; pooling: of the tokens of a model without a head. tapped: whether other
    layers are wanted too, of which it says the same. Raises UsageError where one is given for a model with a head and
    no other layer, and as `find_head` and `backbone_of`.
    """
    if named == HEADLESS or (named is None and is_backbone(model, sample)):
        return backbone_of(model, sample, pooling)
    if pooling is not None and not tapped:
        raise UsageError(f"--pooling {pooling}: the model has a head, and its rows are the classifier's inputs")
    return find_head(model, sample, named)


def head_parameters(model: nn.Module, head: Head | Backbone) -> tuple[Tensor, Tensor | None]:
    """The weights (C, D) and the bias (C,) of a model's head, on the CPU.

    They are float64, which holds every dtype's numbers exactly, so that what is analyzed is what the checkpoint says.
    """
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
    name, told = stated
    local = here(checkpoint.path)
    arguments = {**told, **(setup.model_arguments or {})}
    complete = None
    if name is not None and not model_functions(name):
        complete = partial(model_arguments, name, arguments, tensors=_shapes(checkpoint))
    directory = snapshot_in(local) if local.is_dir() else local.parent
    return ModelHints(name, arguments, directory, complete=complete)


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {tensor: checkpoint.shape(tensor) for tensor in checkpoint.names}


def _data(path: Path, setup: Setup, metadata: CheckpointMetadata, hints: ModelHints) -> LabelledData:
    name = setup.data or metadata.data
    if name is None:
        raise UsageError(f"{path}: does not name its data; use --data, such as idx:DIR or package.module:function")
    stated = {} if setup.data_arguments or name != metadata.data else metadata.data_arguments
    arguments = setup.data_arguments or stated
    hints = replace(hints, arguments_source="the checkpoint's metadata" if stated else "argument")
    if setup.unlabelled:
        arguments = {**arguments, UNLABELLED: True}
    functions = data_functions(name, arguments)
    nested = functions if stated else []
    if name in functions:
        require_named([name], setup.data, path, f"--data {name}")
        nested = functions_within(stated)
    require_named(nested, setup.data, path, f"--data {name} --data-arguments …")
    return load_data(name, arguments, hints=hints, workers=setup.data_workers)


def _stated_model(checkpoint: Checkpoint, setup: Setup) -> tuple[str | None, dict[str, Any]]:
    """The model that the caller names, else the checkpoint, else a file beside it; what the latter two say of it.

    Where the caller names it, they say what Lightning's module was constructed with, as far as the model takes it.
    """
    metadata = checkpoint.metadata
    if setup.model is None and metadata.model is None:
        return model_beside(checkpoint.config_directory or checkpoint.path) or (None, {})
    if setup.model is None or setup.model == metadata.model:
        return setup.model or metadata.model, dict(metadata.model_arguments)
    return setup.model, arguments_taken(setup.model, checkpoint.hyperparameters)


def _told_note(checkpoint: Checkpoint, setup: Setup, stated: tuple[str | None, dict[str, Any]]) -> str | None:
    """Which of a model's arguments are the checkpoint's hyperparameters, as a sentence."""
    if setup.model is None or setup.model == checkpoint.metadata.model:
        return None
    used = {name: value for name, value in stated[1].items() if name not in (setup.model_arguments or {})}
    told = ", ".join(f"{name}={value}" for name, value in used.items())
    return f"model arguments from the checkpoint's hyperparameters: {told}" if told else None


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
    name, told = stated
    path = checkpoint.path
    if name is None:
        arch = checkpoint.facts.get("arch")
        likely = f" ({arch!r} stands in the file: perhaps timm:{arch} or torchvision:{arch})" if arch else ""
        kinds = "timm:NAME, hf:DIR or package.module:function"
        raise UsageError(f"{path}: does not name its model; use --model, such as {kinds}{likely}")
    chosen = setup.model_arguments or {}
    told = {key: value for key, value in told.items() if key not in chosen}
    if functions := model_functions(name):
        require_named(functions, setup.model, path, f"--model {name}")
        require_named(functions_within(told), setup.model, path, f"--model {name} --model-arguments …")
    shape, classes, padding = (None, None, None) if data is None else (data.input_shape, data.classes, data.padding)
    if data is None and (heads := likely_heads(checkpoint.layout)):
        classes = heads[0].classes
    assumed = _assumed(checkpoint, name)
    complete = {**assumed, **told, **chosen}
    tensors = _shapes(checkpoint)
    known = {"input_shape": shape, "classes": classes, "padding": padding, "tensors": tensors}
    return name, model_arguments(name, complete, **known)
