"""What is forwarded: a model built once, its classifier, and the data it is shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import CheckpointMetadata, open_checkpoint
from ckpt_probe.data import LabelledData, functions_named, load_data
from ckpt_probe.errors import CkptProbeError, DataError, UsageError
from ckpt_probe.models import (
    build_model,
    choose_device,
    find_classifier,
    function_named,
    load_weights,
    model_arguments,
)
from ckpt_probe.plugins import functions_within, require_named


@dataclass(frozen=True)
class Wanted:
    """What a caller names in place of what the checkpoint says; None leaves it to the checkpoint."""

    model: str | None = None
    model_arguments: Mapping[str, Any] | None = None
    data: str | None = None
    data_arguments: Mapping[str, Any] | None = None
    classifier: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Subject:
    """A model on its device, ready to take one checkpoint's weights after another."""

    model: nn.Module
    model_name: str
    model_arguments: dict[str, Any]
    data: LabelledData
    classifier: str
    device: torch.device

    def load(self, state_dict: Mapping[str, Tensor], source: str) -> None:
        """Put a checkpoint's weights into the model in place. Raises DataError naming `source` where they don't fit."""
        load_weights(self.model, state_dict, source=source)


def open_subject(checkpoint: Path, wanted: Wanted) -> Subject:
    """Model, data and classifier for a checkpoint: as named by the caller, else by the checkpoint's metadata.

    A function of anybody's is called only where the caller names it: a file's word is not enough, as it could name any.
    Raises UsageError where neither names them, or only the file names such a function; DataError where the checkpoint
    does not fit the model, the model does not take the data, or the model's classifier cannot be found.
    """
    with open_checkpoint(checkpoint) as opened:
        metadata, tensors = opened.metadata, opened.state_dict()
    data = _data(checkpoint, wanted, metadata)
    name, arguments = _model(checkpoint, wanted, metadata, data)
    device = choose_device(wanted.device)
    model = build_model(name, arguments)
    load_weights(model, tensors, source=str(checkpoint))
    model.to(device)
    try:
        classifier = _classifier(model, data, device, wanted.classifier or metadata.classifier)
    except CkptProbeError as error:
        raise type(error)(f"{checkpoint}: model {name}, data {data.name}: {error}") from error
    return Subject(model, name, arguments, data, classifier, device)


def _classifier(model: nn.Module, data: LabelledData, device: torch.device, named: str | None) -> str:
    inputs, _ = next(iter(data.splits.values())).batch(slice(0, 2))
    classifier = find_classifier(model, inputs.to(device), named)
    width = model.get_submodule(classifier).out_features
    if isinstance(width, int) and width < data.classes:
        told = f"classifier {classifier} gives {width} logits for inputs of shape {data.input_shape}"
        raise DataError(f"{told}, which have {data.classes} classes")
    return classifier


def _data(checkpoint: Path, wanted: Wanted, metadata: CheckpointMetadata) -> LabelledData:
    name = wanted.data or metadata.data
    if name is None:
        raise UsageError(
            f"{checkpoint}: names no data; say which by --data (such as idx:DIR or package.module:function)"
        )
    stated = {} if wanted.data_arguments or name != metadata.data else metadata.data_arguments
    arguments = wanted.data_arguments or stated
    functions = functions_named(name, arguments)
    nested = functions if stated else []
    if name in functions:
        require_named([name], wanted.data, checkpoint, f"--data {name}")
        nested = functions_within(stated)
    require_named(nested, wanted.data, checkpoint, f"--data {name} --data-arguments …")
    return load_data(name, arguments)


def _model(
    checkpoint: Path, wanted: Wanted, metadata: CheckpointMetadata, data: LabelledData
) -> tuple[str, dict[str, Any]]:
    name = wanted.model or metadata.model
    if name is None:
        raise UsageError(f"{checkpoint}: names no model; say which by --model (such as package.module:function)")
    chosen = wanted.model_arguments or {}
    stated = metadata.model_arguments if name == metadata.model else {}
    stated = {key: value for key, value in stated.items() if key not in chosen}
    if function_named(name):
        require_named([name], wanted.model, checkpoint, f"--model {name}")
        require_named(functions_within(stated), wanted.model, checkpoint, f"--model {name} --model-arguments …")
    given = {**stated, **chosen}
    return name, model_arguments(name, given, input_shape=data.input_shape, classes=data.classes)
