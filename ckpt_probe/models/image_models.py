"""Models of timm and torchvision by name; weights come from a checkpoint, nothing is downloaded."""

import difflib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from ckpt_probe.errors import CkptProbeError, UsageError, last_line
from ckpt_probe.models.sizing import Build, Shapes, SizeNames, fits, outline, sizes_from_tensors
from ckpt_probe.plugins import hub_switched_off, require_extra

TIMM_SIZES = SizeNames("num_classes", "in_chans", "img_size")
TORCHVISION_SIZES = SizeNames("num_classes", None, "image_size")

WEIGHTS = frozenset({"pretrained", "weights", "weights_backbone", "checkpoint_path", "cache_dir"})
"""Arguments that make these libraries read or download weights."""

OF_WEIGHTS: Mapping[str, Mapping[str, Any]] = {
    "googlenet": {"transform_input": True},
    "inception_v3": {"transform_input": True},
}
"""Arguments that torchvision sets for models with its own weights, and that no tensor shows."""

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
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return _built(f"torchvision:{name}", lambda: models.get_model(name, weights=None, **{**quick, **arguments}))


def timm_arguments(
    name: str,
    arguments: Mapping[str, Any],
    *,
    input_shape: Sequence[int] | None,
    classes: int | None,
    tensors: Shapes | None,
) -> dict[str, Any]:
    """Return complete arguments of a timm model.

    Sizes that the caller does not state are the checkpoint's, else the data's.

    Args:
        name: timm's name of the model.
        arguments: Arguments that the caller states.
        input_shape: Shape of one sample of the data.
        classes: Number of classes of the data.
        tensors: Shapes of the checkpoint's tensors.
    """
    timm = require_extra("timm", "timm")
    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    side = _side_of(input_shape) if cfg is not None and cfg.fixed_input_size else None
    if tensors is None:
        channels = input_shape[0] if input_shape is not None and len(input_shape) == 3 else None
        return _stated(arguments, num_classes=classes, in_chans=channels, img_size=side)
    return _fitted(partial(timm_model, name), dict(arguments), TIMM_SIZES, tensors, side, "patch_embed")


def torchvision_arguments(
    name: str,
    arguments: Mapping[str, Any],
    *,
    input_shape: Sequence[int] | None,
    classes: int | None,
    tensors: Shapes | None,
) -> dict[str, Any]:
    """Return complete arguments of a torchvision model; see `timm_arguments`.

    Auxiliary heads are switched off if the checkpoint lacks them.
    """
    side = _side_of(input_shape) if name.startswith("vit_") else None
    if tensors is None:
        return _stated(arguments, num_classes=classes, image_size=side)
    complete = dict(arguments)
    has_auxiliary = any(f".{part}" in f".{tensor}" for tensor in tensors for part in AUXILIARY)
    if name in ("googlenet", "inception_v3") and not has_auxiliary:
        complete.setdefault("aux_logits", False)
    return _fitted(partial(torchvision_model, name), complete, TORCHVISION_SIZES, tensors, side)


def _stated(arguments: Mapping[str, Any], **sizes: Any) -> dict[str, Any]:
    """Add known sizes to the caller's arguments."""
    return {**{key: value for key, value in sizes.items() if value is not None}, **arguments}


def _fitted(
    build: Build,
    arguments: dict[str, Any],
    names: SizeNames,
    tensors: Shapes,
    side: int | list[int] | None,
    part: str | None = None,
) -> dict[str, Any]:
    """Add the sizes of the checkpoint's tensors to the arguments, and the side of the data's images if it fits.

    Args:
        build: Builds the model from arguments.
        arguments: Arguments of the model.
        names: Names of the arguments for its sizes.
        tensors: Shapes of the checkpoint's tensors.
        side: Side of the data's images.
        part: Name of the part of the model that embeds patches; None for the model itself.
    """
    model = outline(build, arguments)
    embedding = model if part is None else getattr(model, part, None)
    classes: Any = getattr(model, "num_classes", arguments.get("num_classes", 1000))
    complete = {**sizes_from_tensors(model, tensors, names, classes, embedding), **arguments}
    if side is None or names.side is None or names.side in arguments or complete.get(names.side) == side:
        return complete
    sized = {**complete, names.side: side}
    try:
        return sized if fits(outline(build, sized), tensors) else complete
    except UsageError:
        return complete


def _require_known(model: str, name: str, known: bool, names: Sequence[str]) -> None:
    if known:
        return
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise UsageError(f"model {model}: {model.partition(':')[0]} has no model of that name{hint}")


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
