"""Choose model and data of a checkpoint: the settings take precedence over the checkpoint's metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from ckpt_probe.checkpoints import Checkpoint, likely_heads
from ckpt_probe.checkpoints.folders import snapshot_in
from ckpt_probe.data import LabelledData, ModelHints, load_data, recorded_arguments
from ckpt_probe.data import functions_named as data_functions
from ckpt_probe.data.sources import WITHOUT_LABELS
from ckpt_probe.errors import UsageError
from ckpt_probe.extraction.config import Setup
from ckpt_probe.models import arguments_taken, assumed_arguments, is_recorded_model, model_arguments, model_beside
from ckpt_probe.models import functions_named as model_functions
from ckpt_probe.plugins import functions_within, require_named
from ckpt_probe.remote import local_data, local_texts


@dataclass(frozen=True)
class ModelChoice:
    """The model of a checkpoint, before the sizes that its data determine are known.

    Attributes:
        name: Name of the model; None if neither settings nor checkpoint name it.
        stated: Arguments from the checkpoint: its metadata, its hyperparameters or a file beside it.
        explicit: Arguments from the settings, which take precedence.
        assumed: Arguments that the model's library sets for pretrained weights, and that no file records.
        notes: Notes about arguments that the user did not state.
    """

    name: str | None
    stated: Mapping[str, Any]
    explicit: Mapping[str, Any]
    assumed: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments from the checkpoint and the settings."""
        return {**self.stated, **self.explicit}


def choose_model(checkpoint: Checkpoint, setup: Setup) -> ModelChoice:
    """Choose the model: from the settings, the checkpoint's metadata, or a file beside the checkpoint.

    If the settings name another model than the metadata, the arguments are those hyperparameters of a Lightning module
    that the model accepts.
    """
    metadata, explicit, notes = checkpoint.metadata, setup.model_arguments or {}, []
    if setup.model is None and metadata.model is None:
        directory = checkpoint.config_directory
        name, stated = model_beside(checkpoint.path if directory is None else local_texts(directory)) or (None, {})
    elif setup.model is None or is_recorded_model(setup.model, metadata.model):
        name, stated = setup.model or metadata.model, dict(metadata.model_arguments)
    else:
        name, stated = setup.model, arguments_taken(setup.model, checkpoint.hyperparameters)
        if used := _listed(stated, explicit):
            notes.append(f"model arguments from the checkpoint's hyperparameters: {used}")
    # Metadata that name the model also have all of its arguments.
    assumed = {} if name is None or name == metadata.model else assumed_arguments(name)
    if used := _listed(assumed, {**stated, **explicit}):
        notes.append(
            f"model {name}: {used} is assumed, as its library sets it for pretrained weights; no file records it: "
            "state it among the model's arguments if the network was trained otherwise"
        )
    return ModelChoice(name, stated, explicit, assumed, tuple(notes))


def complete_model(
    checkpoint: Checkpoint, setup: Setup, choice: ModelChoice, data: LabelledData | None = None
) -> tuple[str, dict[str, Any]]:
    """Return name and complete arguments of a model; without data, those that the checkpoint determines.

    Raises:
        UsageError: If no model is named, or a user's function only by the metadata, which may be those of an untrusted
            file.
    """
    name, path = choice.name, checkpoint.path
    if name is None:
        arch = checkpoint.facts.get("arch")
        likely = f" ({arch!r} stands in the file: perhaps timm:{arch} or torchvision:{arch})" if arch else ""
        kinds = "timm:NAME, hf:DIR or package.module:function"
        raise UsageError(f"{path}: does not name its model; use `model=`, such as {kinds}{likely}")
    if functions := model_functions(name):
        require_named(functions, setup.model, path, f"`model={name!r}`")
        nested = functions_within({key: value for key, value in choice.stated.items() if key not in choice.explicit})
        require_named(nested, setup.model, path, f"`model={name!r}` and `model_arguments=`")
    shape, classes, padding = (None, None, None) if data is None else (data.input_shape, data.classes, data.padding)
    if data is None and (heads := likely_heads(checkpoint.layout)):
        classes = heads[0].classes
    arguments = {**choice.assumed, **choice.arguments}
    sizes = {"input_shape": shape, "classes": classes, "padding": padding, "tensors": checkpoint.shapes}
    return name, model_arguments(name, arguments, **sizes)


def open_data(checkpoint: Checkpoint, setup: Setup, model: ModelChoice) -> LabelledData:
    """Open the data that the settings or the checkpoint's metadata name.

    Raises:
        UsageError: If neither names data, or only the metadata name a user's function.
    """
    path, metadata = checkpoint.path, checkpoint.metadata
    name = setup.data or metadata.data
    if name is None:
        raise UsageError(f"{path}: does not name its data; use `data=`, such as idx:DIR or package.module:function")
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
    complete = None
    if model.name is not None and not model_functions(model.name):
        complete = partial(model_arguments, model.name, model.arguments, tensors=checkpoint.shapes)
    path = checkpoint.path
    directory = local_texts(snapshot_in(path) if path.is_dir() else path.parent)
    return ModelHints(model.name, model.arguments, directory, complete=complete, arguments_source=arguments_source)


def _listed(arguments: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """List the arguments that are not among others."""
    return ", ".join(f"{name}={value}" for name, value in arguments.items() if name not in others)
