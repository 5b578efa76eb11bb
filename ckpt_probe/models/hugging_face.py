"""Models of transformers from a directory's config.json; downloads nothing and runs no code of the directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ckpt_probe.errors import CkptProbeError, DataError, UsageError, last_line
from ckpt_probe.models.sizing import Shapes, SizeNames, outline, sizes_from_tensors
from ckpt_probe.plugins import hub_switched_off, load_pretrained, parts_imported, quiet_transformers, require_extra

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
"""Class of transformers for each task, by the name of its pipeline; models of the last task have no head."""

BY_NAME_ALONE = ("text-generation", "fill-mask", BACKBONE)
"""Tasks that are chosen only if a configuration's `architectures` or the caller names them."""

PROBLEMS = frozenset({"regression", "single_label_classification", "multi_label_classification"})
"""Values of a configuration's `problem_type` for the classification of sequences."""


@parts_imported("transformers")
def hugging_face_model(directory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the model of `directory`/config.json in float32.

    Its class is the configuration's `architectures` (GPT2LMHeadModel, BertForMaskedLM, …), else one with classes for
    the type of model.

    Args:
        directory: A directory with a config.json.
        arguments: `task`, one of `TASKS`, which chooses the class; others replace entries of the configuration
            (num_labels, pad_token_id, …).

    Raises:
        UsageError: If there is no configuration, or it has no entry of an argument's name.
        DataError: If the configuration describes no such model.
    """
    transformers = _transformers()
    entries = dict(arguments)
    task = entries.pop("task", None)
    config = _config(transformers, directory, entries)
    model_class = _class(transformers, config, directory, task)
    with hub_switched_off(), quiet_transformers(transformers):
        try:
            return model_class.from_config(config, trust_remote_code=False, dtype=torch.float32)
        except (CkptProbeError, ImportError):
            raise
        except Exception as error:
            raise DataError(f"model hf:{directory}: cannot be built: {last_line(error)}") from error


@parts_imported("transformers")
def hugging_face_arguments(
    directory: str,
    arguments: Mapping[str, Any],
    *,
    classes: int | None,
    tensors: Shapes | None,
    padding: int | None = None,
) -> dict[str, Any]:
    """Return complete arguments: sizes that the caller does not state are the checkpoint's, else the data's.

    Language models and models without a head have no number of classes. A model has no head if its configuration names
    that class and the checkpoint's tensors have its names.

    Args:
        directory: A directory with a config.json.
        arguments: Arguments that the caller states.
        classes: Number of classes of the data.
        tensors: Shapes of the checkpoint's tensors.
        padding: Id of the token that pads the data, used if the model has no padding token; decoders need it to find
            the last token of a text.
    """
    complete, transformers = dict(arguments), _transformers()
    config = _config(transformers, directory, {name: value for name, value in complete.items() if name != "task"})
    unpadded = padding is not None and "pad_token_id" not in complete
    if unpadded and getattr(config.get_text_config(), "pad_token_id", None) is None:
        complete["pad_token_id"] = padding
    if "task" not in complete and tensors is not None and _is_backbone(transformers.AutoModel, config, tensors):
        complete["task"] = BACKBONE
    with_classes = [getattr(transformers, name) for task, name in TASKS.items() if task not in BY_NAME_ALONE]
    if _class(transformers, config, directory, complete.get("task")) not in with_classes:
        return complete
    if tensors is None:
        return complete if classes is None else {"num_labels": classes, **complete}
    model: Any = outline(lambda arguments: hugging_face_model(directory, arguments), complete)
    names = SizeNames("num_labels", None, "image_size")
    return {**sizes_from_tensors(model, tensors, names, model.config.num_labels, model.config), **complete}


def _is_backbone(plain: Any, config: Any, tensors: Shapes) -> bool:
    """Return whether a configuration names the model without a head, and the tensors are those of such a model."""
    if type(config) not in plain._model_mapping or not set(config.architectures) & _names(plain, config):
        return False
    # In a model with a head, the names of the other tensors contain a prefix: bert.encoder…, vit.embeddings….
    part = plain._model_mapping[type(config)].base_model_prefix
    return not any(part in name.split(".") for name in tensors)


def _transformers() -> Any:
    with hub_switched_off():
        return require_extra("transformers", "transformers")


def _config(transformers: Any, directory: str, entries: Mapping[str, Any]) -> Any:
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise UsageError(f"model hf:{directory}: no such file: {file}; hf:DIR is a local directory with a config.json")
    try:
        config = load_pretrained(transformers.AutoConfig, directory)
    except CkptProbeError:
        raise
    except Exception as error:
        raise DataError(f"{file}: {_why(error)}") from error
    if "/" in str(getattr(config, "_attn_implementation", None)):
        raise DataError(f"{file}: names kernels for attention that would be downloaded; remove attn_implementation")
    # transformers fails to choose among several classes of one task without this entry.
    config.architectures = config.architectures or []
    if not isinstance(config.architectures, list) or not all(isinstance(name, str) for name in config.architectures):
        raise DataError(
            f"{file}: architectures is {str(config.architectures)[:80]}, expected a list of names of classes"
        )
    for name, value in entries.items():
        if not hasattr(config, name):
            raise UsageError(f"model hf:{directory}: its configuration has no entry {name!r}")
        setattr(config, name, value)
    return config


def _why(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "the model needs code that comes with it, which is never run; name a function of yours with `model=`"
    return f"no configuration that transformers knows ({last_line(error)})"


def _class(transformers: Any, config: Any, directory: str, task: str | None) -> Any:
    if task is not None:
        if task not in TASKS:
            raise UsageError(f"model hf:{directory}: task {task!r}: expected one of {', '.join(TASKS)}")
        return getattr(transformers, TASKS[task])
    of_tasks = {name: getattr(transformers, TASKS[name]) for name in TASKS if name != BACKBONE}
    fitting = {name: candidate for name, candidate in of_tasks.items() if type(config) in candidate._model_mapping}
    for candidate in fitting.values():
        if set(config.architectures) & _names(candidate, config):
            return candidate
    usual = [candidate for name, candidate in fitting.items() if name not in BY_NAME_ALONE]
    sequence = of_tasks["text-classification"]
    if config.problem_type in PROBLEMS and sequence in usual:
        return sequence
    if not usual:
        kinds = ", ".join(TASKS)
        raise DataError(f"model hf:{directory}: transformers has no {config.model_type} model for any of {kinds}")
    return usual[0]


def _names(auto_class: Any, config: Any) -> set[str]:
    classes = auto_class._model_mapping[type(config)]
    return {each.__name__ for each in (classes if isinstance(classes, tuple) else (classes,))}
