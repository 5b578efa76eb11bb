"""Models of timm and torchvision by name; weights come from a checkpoint, nothing is downloaded."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from ckpt_probe.errors import CkptProbeError, UsageError, last_line
from ckpt_probe.keywords import suggestion
from ckpt_probe.models.sizing import Shapes, SizeNames, fits, outline, sizes_from_tensors
from ckpt_probe.plugins import hub_switched_off, require_extra

TIMM_SIZES = SizeNames("num_classes", "in_chans", "img_size")
TORCHVISION_SIZES = SizeNames("num_classes", None, "image_size")

UNLIKELY = 7919
"""A number of classes that no checkpoint has."""

WEIGHTS = frozenset({"pretrained", "weights", "weights_backbone", "checkpoint_path", "cache_dir"})
"""Arguments that make these libraries read or download weights."""

OF_WEIGHTS: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"transform_input": True},
    "inception_v3": {"transform_input": True},
}
"""Arguments that torchvision sets for models with its own weights, and that no tensor shows."""

WITH_AUXILIARY = ("googlenet", "inception_v3")
AUXILIARY = ("aux", "AuxLogits")
"""Prefixes of torchvision's auxiliary heads, which serve in training alone and may be absent from a checkpoint."""


def timm_model(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a model of timm.

    Args:
        name: timm's name of the model.
        arguments: Arguments of the model.

    Raises:
        UsageError: For an unknown name or invalid arguments.
    """
    timm = require_extra("timm", "timm")
    _require_known(f"timm:{name}", name, name.isascii() and timm.is_model(name) and ":" not in name, timm.list_models())
    _require_no_weights(f"timm:{name}", arguments)
    if not isinstance(arguments.get("pretrained_cfg", {}), Mapping):
        raise UsageError(f"model timm:{name}: pretrained_cfg: expected a table of values")
    with hub_switched_off():
        return _built(f"timm:{name}", lambda: timm.create_model(name, pretrained=False, **arguments))


def torchvision_model(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a model of torchvision; see `timm_model`."""
    models = require_extra("torchvision.models", "torchvision")
    known = models.list_models(module=models)
    _require_known(f"torchvision:{name}", name, name in known, known)
    _require_no_weights(f"torchvision:{name}", arguments)
    # Avoids torchvision's warning about the initialisation, which a checkpoint replaces anyway.
    quick = {"init_weights": False} if name in WITH_AUXILIARY else {}
    return _built(f"torchvision:{name}", lambda: models.get_model(name, weights=None, **{**quick, **arguments}))


def image_model_arguments(
    library: str,
    name: str,
    arguments: Mapping[str, Any],
    *,
    input_shape: Sequence[int] | None,
    classes: int | None,
    tensors: Shapes | None,
) -> dict[str, Any]:
    """Return complete arguments of a model of timm or torchvision.

    Sizes that the caller does not state are the checkpoint's, else the data's; the side of the data's images counts if
    it fits the checkpoint. Auxiliary heads of torchvision are switched off if the checkpoint lacks them.

    Args:
        library: "timm" or "torchvision".
        name: The library's name of the model.
        arguments: Arguments that the caller states.
        input_shape: Shape of one sample of the data.
        classes: Number of classes of the data.
        tensors: Shapes of the checkpoint's tensors.
    """
    of_timm, complete = library == "timm", dict(arguments)
    build, names = (timm_model, TIMM_SIZES) if of_timm else (torchvision_model, TORCHVISION_SIZES)
    has_side = _has_fixed_input(name) if of_timm else name.startswith("vit_")
    side = _side_of(input_shape) if has_side else None
    if tensors is None:
        channels = input_shape[0] if input_shape is not None and len(input_shape) == 3 else None
        sizes = {names.classes: classes, names.channels: channels, names.side: side}
        return {**{key: value for key, value in sizes.items() if key and value is not None}, **complete}
    has_auxiliary = any(f".{part}" in f".{tensor}" for tensor in tensors for part in AUXILIARY)
    if not of_timm and name in WITH_AUXILIARY and not has_auxiliary:
        complete.setdefault("aux_logits", False)
    model = outline(partial(build, name), complete)
    if "num_classes" not in complete and getattr(model, "num_classes", None) == 0:
        # A model without a head has no tensor that shows their number.
        headed = outline(partial(build, name), {**complete, "num_classes": UNLIKELY})
        complete |= sizes_from_tensors(headed, tensors, SizeNames(names.classes), UNLIKELY)
        model = outline(partial(build, name), complete)
    embedding = getattr(model, "patch_embed", None) if of_timm else model
    built: Any = getattr(model, "num_classes", complete.get("num_classes", 1000))
    fitted = {**sizes_from_tensors(model, tensors, names, built, embedding), **complete}
    if side is None or names.side is None or names.side in complete or fitted.get(names.side) == side:
        return fitted
    sized = {**fitted, names.side: side}
    try:
        return sized if fits(outline(partial(build, name), sized), tensors) else fitted
    except UsageError:
        return fitted


def model_of_script(entries: Mapping[str, Any]) -> tuple[str, dict[str, Any], Mapping[str, Any]] | None:
    """Return the model that timm's `train.py` or torchvision's reference script trained.

    Args:
        entries: Entries of the checkpoint besides the tensors.

    Returns:
        Name of the model, its arguments that no tensor shows, and all arguments of the script; None for checkpoints of
        other programs.
    """
    options = entries.get("args")
    name = options.get("model") if isinstance(options, Mapping) else None
    if options is None or not isinstance(name, str) or ":" in name:
        return None
    if "val_crop_size" in options:
        has_weights = bool(options.get("weights") or options.get("pretrained"))
        return f"torchvision:{name}", dict.fromkeys(OF_WEIGHTS.get(name, {}), has_weights), options
    if entries.get("arch") != name or "version" not in entries:
        return None
    stated = {"global_pool": options.get("gp"), "bn_eps": options.get("bn_eps")}
    further = options.get("model_kwargs")
    further = further if isinstance(further, Mapping) else {}
    return f"timm:{name}", {**{key: value for key, value in stated.items() if value is not None}, **further}, options


def _has_fixed_input(name: str) -> bool:
    """Return whether a model of timm takes images of one size only."""
    timm = require_extra("timm", "timm")
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return cfg is not None and cfg.fixed_input_size


def _require_known(model: str, name: str, known: bool, names: Sequence[str]) -> None:
    if known:
        return
    library = model.partition(":")[0]
    raise UsageError(f"model {model}: {library} has no model of that name{suggestion(name, names)}")


def _require_no_weights(model: str, arguments: Mapping[str, Any]) -> None:
    forbidden = sorted(WEIGHTS & set(arguments))
    if forbidden:
        raise UsageError(f"model {model}: {forbidden[0]}: weights come from the checkpoint, nothing is downloaded")


def _built(model: str, build: Any) -> nn.Module:
    try:
        return build()
    except CkptProbeError:
        raise
    except Exception as error:
        raise UsageError(f"model {model}: cannot be built: {last_line(error)}") from error


def _side_of(input_shape: Sequence[int] | None) -> int | list[int] | None:
    """Return the side of images of shape (C, H, W), or [H, W] if these differ."""
    if input_shape is None or len(input_shape) != 3:
        return None
    height, width = input_shape[1:]
    return height if height == width else [height, width]
