"""What is forwarded: a model built once, its classifier, and the data it is shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ckpt_probe.checkpoints import CheckpointMetadata, open_checkpoint
from ckpt_probe.data import LabelledData, functions_named, load_data
from ckpt_probe.errors import CkptProbeError, UsageError
from ckpt_probe.models import (
    build_model,
    choose_device,
    find_classifier,
    function_named,
    load_weights,
    model_arguments,
)
from ckpt_probe.plugins import require_named


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
    does not fit the model, or the model's classifier cannot be found.
    """
    with open_checkpoint(checkpoint) as opened:
        metadata, tensors = opened.metadata, opened.state_dict()
    data = _data(checkpoint, wanted, metadata)
    name, arguments = _model(checkpoint, wanted, metadata, data)
    device = choose_device(wanted.device)
    model = build_model(name, arguments)
    load_weights(model, tensors, source=str(checkpoint))
    model.to(device)
    inputs, _ = next(iter(data.splits.values())).batch(slice(0, 2))
    try:
        classifier = find_classifier(model, inputs.to(device), wanted.classifier or metadata.classifier)
    except CkptProbeError as error:
        raise type(error)(f"{checkpoint}: {error}") from error
    return Subject(model, name, arguments, data, classifier, device)


def _data(checkpoint: Path, wanted: Wanted, metadata: CheckpointMetadata) -> LabelledData:
    name = wanted.data or metadata.data
    if name is None:
        raise UsageError(
            f"{checkpoint}: names no data; say which by --data (such as idx:DIR or package.module:function)"
        )
    stated = metadata.data_arguments if name == metadata.data else {}
    arguments = wanted.data_arguments or stated
    functions = functions_named(name, arguments)
    by_file = functions if arguments is stated else [function for function in functions if function == name]
    option = f"--data {name}" if by_file == [name] else f"--data {name} --data-arguments …"
    require_named(by_file, wanted.data, checkpoint, option)
    return load_data(name, arguments)


def _model(
    checkpoint: Path, wanted: Wanted, metadata: CheckpointMetadata, data: LabelledData
) -> tuple[str, dict[str, Any]]:
    name = wanted.model or metadata.model
    if name is None:
        raise UsageError(f"{checkpoint}: names no model; say which by --model (such as package.module:function)")
    function = function_named(name)
    require_named([function] if function else [], wanted.model, checkpoint, f"--model {name}")
    stated = metadata.model_arguments if name == metadata.model else {}
    given = {**stated, **(wanted.model_arguments or {})}
    return name, model_arguments(name, given, input_shape=data.input_shape, classes=data.classes)
