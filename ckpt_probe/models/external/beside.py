"""What the files beside a checkpoint say of its model: a config.json of transformers or of timm; names of classes."""

from pathlib import Path
from typing import Any

from torch import nn

from ckpt_probe.files import read_object

TIMM_SHOWN = ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std", "label_names", "fixed_input_size")
"""What timm's own configuration says of images and classes; where its weights come from is left out."""


def model_beside(path: Path) -> tuple[str, dict[str, Any]] | None:
    """The model, by name and arguments, of a checkpoint that is a file in, or is, a directory with a config.json.

    A configuration of transformers is `hf:DIR`, one of timm `timm:NAME`; None where there is none of either. Raises
    DataError where the file is no JSON object.
    """
    directory = path if path.is_dir() else path.parent
    file = directory / "config.json"
    if not file.is_file():
        return None
    found = read_object(file, "a model's configuration")
    if "architectures" in found or "model_type" in found:
        return f"hf:{directory}", {}
    if isinstance(found.get("architecture"), str):
        return f"timm:{found['architecture']}", _timm_arguments(found)
    return None


def class_names(model: nn.Module) -> tuple[str, ...] | None:
    """The names of a model's classes in their order, as its configuration (`id2label`, timm's `label_names`) has them.

    None where it has none, or only the placeholders LABEL_0, LABEL_1, … of transformers.
    """
    table = getattr(getattr(model, "config", None), "id2label", None)
    names = [table[number] for number in sorted(table)] if isinstance(table, dict) else _timm_names(model)
    if not names or names == [f"LABEL_{number}" for number in range(len(names))]:
        return None
    return tuple(str(name) for name in names)


def _timm_arguments(found: dict[str, Any]) -> dict[str, Any]:
    inner = found.get("pretrained_cfg")
    stated = {**(inner if isinstance(inner, dict) else found)}
    stated |= {name: found[name] for name in ("num_classes", "label_names") if name in found}
    if "labels" in stated:
        stated.setdefault("label_names", stated["labels"])
    arguments = dict(found["model_args"]) if isinstance(found.get("model_args"), dict) else {}
    if isinstance(stated.get("num_classes"), int):
        arguments.setdefault("num_classes", stated["num_classes"])
    if isinstance(found.get("global_pool"), str):
        arguments.setdefault("global_pool", found["global_pool"])
    overlay = {name: stated[name] for name in TIMM_SHOWN if stated.get(name) is not None}
    return {**arguments, "pretrained_cfg_overlay": overlay} if overlay else arguments


def _timm_names(model: nn.Module) -> list[Any]:
    cfg = getattr(model, "pretrained_cfg", None)
    found = cfg.get("label_names") if isinstance(cfg, dict) else None
    return list(found) if isinstance(found, list | tuple) else []
