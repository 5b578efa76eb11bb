"""The model in the config.json beside a checkpoint, of transformers or timm, and the names of its classes."""

from pathlib import Path
from typing import Any

from torch import nn

from ckpt_probe.files import read_object

TIMM_SHOWN = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "label_names", "fixed_input_size")
"""Entries of timm's configuration on images and classes; the origin of weights is left out."""


def model_beside(path: Path) -> tuple[str, dict[str, Any]] | None:
    """Return name and arguments of the model in the config.json beside a checkpoint.

    Args:
        path: The checkpoint: a file, or a directory with a config.json.

    Returns:
        `hf:DIR` for a configuration of transformers, `timm:NAME` for one of timm, with arguments; else None.

    Raises:
        DataError: If the file is not a JSON object.
    """
    directory = path if path.is_dir() else path.parent
    file = directory / "config.json"
    if not file.is_file():
        return None
    config = read_object(file, "a model's configuration")
    if "architectures" in config or "model_type" in config:
        return f"hf:{directory}", {}
    if isinstance(config.get("architecture"), str):
        return f"timm:{config['architecture']}", _timm_arguments(config)
    return None


def class_names(model: nn.Module) -> tuple[str, ...] | None:
    """Return the class names in a model's configuration (`id2label`, timm's `label_names`), in order.

    Returns:
        The names, None if there are no names or only the placeholders LABEL_0, LABEL_1, … of transformers.
    """
    table = getattr(getattr(model, "config", None), "id2label", None)
    names = [table[number] for number in sorted(table)] if isinstance(table, dict) else _timm_names(model)
    if not names or names == [f"LABEL_{number}" for number in range(len(names))]:
        return None
    return tuple(str(name) for name in names)


def _timm_arguments(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("pretrained_cfg")
    stated = {**(inner if isinstance(inner, dict) else config)}
    stated |= {name: config[name] for name in ("num_classes", "label_names") if name in config}
    if "labels" in stated:
        stated.setdefault("label_names", stated["labels"])
    arguments = dict(config["model_args"]) if isinstance(config.get("model_args"), dict) else {}
    if isinstance(stated.get("num_classes"), int):
        arguments.setdefault("num_classes", stated["num_classes"])
    if isinstance(config.get("global_pool"), str):
        arguments.setdefault("global_pool", config["global_pool"])
    overlay = {name: stated[name] for name in TIMM_SHOWN if stated.get(name) is not None}
    return {**arguments, "pretrained_cfg_overlay": overlay} if overlay else arguments


def _timm_names(model: nn.Module) -> list[Any]:
    cfg = getattr(model, "pretrained_cfg", None)
    names = cfg.get("label_names") if isinstance(cfg, dict) else None
    return list(names) if isinstance(names, list | tuple) else []
