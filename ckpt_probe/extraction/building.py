"""Build the subject of an extraction from an open checkpoint: the model that it names, its weights, and the data."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ckpt_probe.models as models
from ckpt_probe.checkpoints import Checkpoint, likely_heads
from ckpt_probe.checkpoints.folders import snapshot_in
from ckpt_probe.data import (
    ArraySplit,
    LabelledData,
    ModelHints,
    described_size,
    first_samples,
    in_model_order,
    in_width,
    load_data,
    recorded_arguments,
)
from ckpt_probe.data import functions_named as data_functions
from ckpt_probe.data.sources import WITHOUT_LABELS
from ckpt_probe.errors import CkptProbeError, UsageError
from ckpt_probe.extraction.config import Setup
from ckpt_probe.extraction.subject import Subject
from ckpt_probe.models import Backbone, Batch, Taps
from ckpt_probe.models import functions_named as model_functions
from ckpt_probe.plugins import functions_within, require_named
from ckpt_probe.remote import local_data, local_texts

SAMPLE = 2
"""Number of samples on which a model is run to find its head."""

TEXTS = (("max_length", "at most {} of a text"), ("context", "in windows of {}"))
"""Arguments of texts that are numbers of tokens, and their descriptions."""


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
    target = models.choose_device(setup.device)
    model, name, arguments, load_notes = load_model(checkpoint, setup, choice, target, data)
    named = setup.classifier or checkpoint.metadata.classifier
    inputs = None
    try:
        data = in_model_order(data, models.class_names(model))
        sample = models.part_of(first_samples(next(iter(data.splits.values())), SAMPLE)[0], slice(0, SAMPLE))
        inputs = models.as_taken_by(model, sample)
        tapped = setup.layers != models.PENULTIMATE
        head = models.find_rows(model, inputs, named, setup.pooling, tapped=tapped)
        taps = models.choose_taps(model, inputs, head, setup.layers, setup.pooling) if tapped else Taps()
        notes = (*choice.notes, *load_notes, models.unsteadiness(model, inputs))
        weights, bias = models.head_parameters(model, head)
        scored = models.is_scored(head, len(weights))
        if not isinstance(head, Backbone):
            data = in_width(data, len(weights))
    except CkptProbeError as error:
        hint = _images_hint(model, inputs, data)
        raise type(error)(f"{path}: model {name}, data {data.name}: {error}{hint}") from error
    return Subject(
        model,
        choice.recorded_name or name,
        arguments,
        data,
        splits,
        head,
        weights,
        bias,
        scored,
        f"inputs: {data.name}: {_described_inputs(data)}",
        sample,
        setup,
        target,
        tuple(filter(None, notes)),
        taps,
        loaded_from=str(path),
    )


@dataclass(frozen=True)
class ModelChoice:
    """The model of a checkpoint, before the sizes that its data determine are known.

    Attributes:
        name: Name of the model; None if neither settings nor checkpoint name it.
        arguments: Arguments from the settings, and others from the checkpoint.
        stated: Those from the checkpoint: its metadata, its hyperparameters or a file beside it.
        assumed: Arguments that the model's library sets for pretrained weights, and that no file records.
        notes: Notes about arguments that the user did not state.
        recorded_name: Name for the provenance if it differs: with an address in place of the local copy.
        script: Arguments of the script that trained the model; empty if the checkpoint does not contain them.
    """

    name: str | None
    arguments: Mapping[str, Any]
    stated: Mapping[str, Any]
    assumed: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    recorded_name: str | None = None
    script: Mapping[str, Any] = field(default_factory=dict)


def choose_model(checkpoint: Checkpoint, setup: Setup) -> ModelChoice:
    """Choose the model: from the settings, the checkpoint's metadata, a file beside it, or its training script.

    If the settings name another model than the metadata, the arguments are those of the training script for it, or
    those hyperparameters of a Lightning module that the model accepts.
    """
    metadata, explicit, notes, recorded = checkpoint.metadata, setup.model_arguments or {}, [], None
    of_training = models.model_of_script(checkpoint.facts) if "args" in checkpoint.facts else None
    trained, of_script, script = of_training or (None, {}, {})
    if setup.model is None and metadata.model is None:
        directory = checkpoint.config_directory
        copy = None if directory is None else local_texts(directory)
        beside = models.model_beside(copy or checkpoint.path)
        name, stated = beside or (trained, of_script)
        if beside is None and trained is not None:
            notes.append(f"model {trained}: from the training arguments in the checkpoint")
        recorded = None if name is None or copy is None else name.replace(str(copy), str(directory))
    elif setup.model is None or models.is_recorded_model(setup.model, metadata.model):
        name, stated = setup.model or metadata.model, dict(metadata.model_arguments)
    else:
        name = setup.model
        stated = of_script if name == trained else models.arguments_taken(name, checkpoint.hyperparameters)
        if used := _listed(stated, explicit):
            notes.append(f"model arguments from the checkpoint's hyperparameters: {used}")
    # Metadata that name the model also have all of its arguments.
    assumed = {} if name is None or name == metadata.model else models.assumed_arguments(name)
    if used := _listed(assumed, {**stated, **explicit}):
        notes.append(
            f"model {name}: {used} is assumed, as its library sets it for pretrained weights; no file records it: "
            "state it among the model's arguments if the network was trained otherwise"
        )
    from_checkpoint = {key: value for key, value in stated.items() if key not in explicit}
    script = script if name == trained else {}
    return ModelChoice(name, {**stated, **explicit}, from_checkpoint, assumed, tuple(notes), recorded, script)


def load_model(
    checkpoint: Checkpoint, setup: Setup, choice: ModelChoice, target: torch.device, data: LabelledData | None = None
) -> tuple[nn.Module, str, dict[str, Any], tuple[str, ...]]:
    """Build a model with the weights of a checkpoint; sizes that no argument states are those of the data.

    Args:
        checkpoint: Open checkpoint.
        setup: Model and data.
        choice: The model.
        target: Device of the model.
        data: The data; None for sizes that the checkpoint determines.

    Returns:
        The model, its name, its complete arguments, and notes about the weights.

    Raises:
        UsageError: If no model is named, or a user's function only by the metadata, which may be those of an untrusted
            file.
        DataError: If the checkpoint does not fit the model.
    """
    name, path = choice.name, checkpoint.path
    if name is None:
        arch = checkpoint.facts.get("arch")
        likely = f" ({arch!r} stands in the file: perhaps timm:{arch} or torchvision:{arch})" if arch else ""
        kinds = "timm:NAME, hf:DIR or package.module:function"
        raise UsageError(f"{path}: does not name its model; use `model=`, such as {kinds}{likely}")
    if functions := model_functions(name):
        require_named(functions, setup.model, path, f"`model={name!r}`")
        nested = functions_within(choice.stated)
        require_named(nested, setup.model, path, f"`model={name!r}` and `model_arguments=`")
    shape, classes, padding = (None, None, None) if data is None else (data.input_shape, data.classes, data.padding)
    if data is None and (heads := likely_heads(checkpoint.layout)):
        classes = heads[0].classes
    arguments = {**choice.assumed, **choice.arguments}
    sizes = {"input_shape": shape, "classes": classes, "padding": padding, "tensors": checkpoint.shapes}
    arguments = models.model_arguments(name, arguments, **sizes)
    model = models.build_model(name, arguments, tensors=checkpoint.shapes)
    state, extra = checkpoint.state_dict(), checkpoint.extra_state()
    return model, name, arguments, models.fill_model(model, target, state, str(path), extra, checkpoint.state_key)


def open_data(checkpoint: Checkpoint, setup: Setup, model: ModelChoice) -> LabelledData:
    """Open the data that the settings or the checkpoint's metadata name.

    Raises:
        UsageError: If neither names data, or only the metadata name a user's function.
    """
    path, metadata = checkpoint.path, checkpoint.metadata
    name = setup.data or metadata.data
    if name is None:
        nor = "; nor its model: use `model=` too" if model.name is None else ""
        raise UsageError(
            f"{path}: does not name its data; use `data=`, such as idx:DIR or package.module:function{nor}"
        )
    stated = {} if setup.data_arguments else recorded_arguments(name, metadata.data, metadata.data_arguments)
    arguments = {**(setup.data_arguments or stated), **({WITHOUT_LABELS: True} if setup.unlabelled else {})}
    if functions := data_functions(name):
        require_named(functions, setup.data, path, f"`data={name!r}`")
        require_named(functions_within(stated), setup.data, path, f"`data={name!r}` and `data_arguments=`")
    hints = _hints(checkpoint, model, "the checkpoint's metadata" if stated else "argument")
    with local_data(name) as local:
        data = load_data(local, arguments, hints=hints, workers=setup.data_workers)
    return data if local == name else replace(data, name=name)


def _hints(checkpoint: Checkpoint, model: ModelChoice, arguments_source: str) -> ModelHints:
    """Return information about the model for the data, which may ask for sizes of the checkpoint's tensors."""

    def complete() -> Mapping[str, Any]:
        if model.name is None or model_functions(model.name):
            return model.arguments
        return models.model_arguments(model.name, model.arguments, tensors=checkpoint.shapes)

    path = checkpoint.path
    directory = local_texts(snapshot_in(path) if path.is_dir() else path.parent)
    return ModelHints(model.name, model.arguments, directory, arguments_source, complete, model.script)


def _listed(arguments: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """List the arguments that are not among others."""
    return ", ".join(f"{name}={value}" for name, value in arguments.items() if name not in others)


def _described_inputs(data: LabelledData) -> str:
    """Return size, channels, scaling and normalisation of inputs with their sources; for texts and sound the tool."""
    arguments = data.arguments
    if data.preparation:
        return data.preparation
    if "tokenizer" in arguments:
        lengths = [words.format(arguments[name]) for name, words in TEXTS if name in arguments]
        return ", ".join([f"tokens by {arguments['tokenizer']}", *lengths])
    if "feature_extractor" in arguments:
        return f"sound by {arguments['feature_extractor']}, which also normalises"
    shape = (
        described_size(data.input_shape, "as stored", "as stored") if data.input_shape else "as the source gives them"
    )
    split = next(iter(data.splits.values()))
    is_bytes = isinstance(split, ArraySplit) and split.inputs.dtype == torch.uint8
    scaling = "scaling to [0, 1] (default for bytes)" if is_bytes else "scaling none (as stored)"
    return f"{shape}, {scaling}, normalisation none (nothing asks for one)"


def _images_hint(model: nn.Module, inputs: Batch | None, data: LabelledData) -> str:
    """Return how to give a model images in the layout that it takes, "" if it fails for another reason."""
    if not isinstance(inputs, Tensor) or inputs.ndim not in (3, 4) or _takes(model, inputs):
        return ""
    channels = inputs.shape[1]
    if inputs.ndim == 4 and channels in (1, 3) and _takes(model, inputs[:, :1].expand(-1, 4 - channels, -1, -1)):
        wanted = 4 - channels
        plural = "channel" if wanted == 1 else "channels"
        advice = f"; add `data_arguments={ {'channels': wanted} }`" if data.preparation else ""
        return f"; the model takes images of {wanted} {plural}, not {channels}{advice}"
    images = inputs.unsqueeze(1) if inputs.ndim == 3 else inputs.permute(0, 3, 1, 2)
    if images.shape[1] not in (1, 3) or not _takes(model, images):
        return ""
    shape = ", ".join(map(str, images.shape[1:]))
    return f"; the model takes them with the axis of channels first: store the array as (N, {shape})"


def _takes(model: nn.Module, inputs: Tensor) -> bool:
    with suppress(CkptProbeError):
        models.run_once(model, inputs)
        return True
    return False
