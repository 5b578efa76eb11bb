"""Models of transformers from a directory's config.json: nothing is downloaded, no code of the directory is run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ckpt_probe.errors import DataError, UsageError, last_line
from ckpt_probe.models.external.sizing import Shapes, SizeNames, Skeleton, outline, shapes_of, square_side, told_sizes
from ckpt_probe.plugins import hub_switched_off, load_pretrained, require_extra, told_nothing

BACKBONE = "feature-extraction"
"""The task of models without a head."""

TASKS = {
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "text-generation": "AutoModelForCausalLM",
    "fill-mask": "AutoModelForMaskedLM",
    BACKBONE: "AutoModel",
}
"""transformers' class of models for each task, as its pipelines are called; the last one's have no head."""

BY_NAME_ALONE = ("text-generation", "fill-mask", BACKBONE)
"""Tasks that are taken only where a configuration's `architectures`, or the caller, names them."""

PROBLEMS = frozenset({"regression", "single_label_classification", "multi_label_classification"})
"""What a configuration's `problem_type` says where whole sequences are classified."""


def hugging_face_model(directory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model that `directory`/config.json describes, freshly initialised, as float32.

    Its class is that of the configuration's `architectures` (GPT2LMHeadModel, BertForMaskedLM, …), else one with
    classes that its type has; `task` among the arguments, one of `TASKS`, chooses. The others take the place of the
    configuration's entries (num_labels, pad_token_id, …). Raises UsageError where there is no configuration or an
    argument fits it not, DataError where it describes no such model.
    """
    transformers = _transformers()
    given = dict(arguments)
    task = given.pop("task", None)
    config = _config(transformers, directory, given)
    model_class = _class(transformers, config, directory, task)
    with hub_switched_off(), told_nothing(transformers):
        try:
            return model_class.from_config(config, trust_remote_code=False, dtype=torch.float32)
        except Exception as error:
            raise DataError(f"model hf:{directory}: cannot be built: {last_line(error)}") from error


def hugging_face_arguments(
    directory: str,
    arguments: Mapping[str, Any],
    *,
    classes: int | None,
    tensors: Shapes | None,
    padding: int | None = None,
) -> dict[str, Any]:
    """Return complete arguments: sizes that the caller does not state are the checkpoint's, else the data's.

    Language models and models without a head have no number of classes. A model is one without a head if its
    configuration names that class and the checkpoint's tensors have its names. A model without a padding token, which
    decoders need to find the last token of a text, gets that of the data.
    """
    given = dict(arguments)
    if padding is not None and "pad_token_id" not in given and _pads_nothing(directory, given):
        given["pad_token_id"] = padding
    if "task" not in given and tensors is not None and _is_backbone(directory, given, tensors):
        given["task"] = BACKBONE
    if _class_for(directory, given) not in _with_classes():
        return given
    if tensors is None:
        return given if classes is None else {"num_labels": classes, **given}
    model: Any = outline(lambda arguments: hugging_face_model(directory, arguments), given)
    image, patch = (square_side(getattr(model.config, name, None)) for name in ("image_size", "patch_size"))
    skeleton = Skeleton(shapes_of(model), model.config.num_labels, image, patch)
    return {**told_sizes(skeleton, tensors, SizeNames("num_labels", None, "image_size")), **given}


def _pads_nothing(directory: str, arguments: dict[str, Any]) -> bool:
    entries = {name: value for name, value in arguments.items() if name != "task"}
    return getattr(_config(_transformers(), directory, entries).get_text_config(), "pad_token_id", None) is None


def _is_backbone(directory: str, given: dict[str, Any], tensors: Shapes) -> bool:
    """Whether a configuration names the model without a head, and the checkpoint's tensors are not those of a part."""
    transformers = _transformers()
    config = _config(transformers, directory, given)
    plain = transformers.AutoModel
    if type(config) not in plain._model_mapping or not set(config.architectures) & _names(plain, config):
        return False
    # With a head, the tensors of the rest have the names of a part of the model: bert.encoder…, vit.embeddings….
    part = plain._model_mapping[type(config)].base_model_prefix
    return not any(part in name.split(".") for name in tensors)


def _class_for(directory: str, given: Mapping[str, Any]) -> Any:
    transformers, entries = _transformers(), dict(given)
    task = entries.pop("task", None)
    return _class(transformers, _config(transformers, directory, entries), directory, task)


def _with_classes() -> list[Any]:
    transformers = _transformers()
    return [getattr(transformers, name) for task, name in TASKS.items() if task not in BY_NAME_ALONE]


def _transformers() -> Any:
    with hub_switched_off():
        return require_extra("transformers", "transformers")


def _config(transformers: Any, directory: str, entries: Mapping[str, Any]) -> Any:
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise UsageError(f"model hf:{directory}: no such file: {file}; hf:DIR is a local directory with a config.json")
    try:
        config = load_pretrained(transformers.AutoConfig, directory)
    except Exception as error:
        raise DataError(f"{file}: {_why(error)}") from error
    if "/" in str(getattr(config, "_attn_implementation", None)):
        raise DataError(f"{file}: names kernels for attention that would be downloaded; remove attn_implementation")
    # Where it is None, transformers fails to choose among several classes of one task.
    config.architectures = config.architectures or []
    for name, value in entries.items():
        if not hasattr(config, name):
            raise UsageError(f"model hf:{directory}: its configuration has no entry {name!r}")
        setattr(config, name, value)
    return config


def _why(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "the model needs code that comes with it, which is never run; name a function of yours by --model"
    return f"no configuration that transformers knows ({last_line(error)})"


def _class(transformers: Any, config: Any, directory: str, task: str | None) -> Any:
    if task is not None:
        if task not in TASKS:
            raise UsageError(f"model hf:{directory}: task {task!r}: expected one of {', '.join(TASKS)}")
        return getattr(transformers, TASKS[task])
    of_tasks = {name: getattr(transformers, TASKS[name]) for name in TASKS if name != BACKBONE}
    fitting = {name: found for name, found in of_tasks.items() if type(config) in found._model_mapping}
    for found in fitting.values():
        if set(config.architectures) & _names(found, config):
            return found
    usual = [found for name, found in fitting.items() if name not in BY_NAME_ALONE]
    sequence = of_tasks["text-classification"]
    if config.problem_type in PROBLEMS and sequence in usual:
        return sequence
    if not usual:
        kinds = ", ".join(TASKS)
        raise DataError(f"model hf:{directory}: transformers has no {config.model_type} model for any of {kinds}")
    return usual[0]


def _names(auto_class: Any, config: Any) -> set[str]:
    found = auto_class._model_mapping[type(config)]
    return {each.__name__ for each in (found if isinstance(found, tuple) else (found,))}
