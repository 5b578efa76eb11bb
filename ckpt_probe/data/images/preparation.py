"""Preparation of images for a model: by the model's configuration, or by resize, crop, mean and std."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ckpt_probe.data.arguments import ModelHints, as_list, load_auto
from ckpt_probe.data.images.pictures import PILLOWS, Steps
from ckpt_probe.data.samples import described_size
from ckpt_probe.errors import DataError, UsageError, last_line
from ckpt_probe.plugins import require_extra

if TYPE_CHECKING:
    from PIL.Image import Image

Prepare = Callable[["Image"], Tensor]

TRANSFORM = "transform"
"""The data argument with the transform, {library: settings}; it replaces the model's configuration."""

OURS = "steps"

IMAGE_SIZE = "image_size"
"""The argument of torchvision's and transformers' models for the side of their images in pixels."""

PROCESSOR_FILE = "preprocessor_config.json"
TIMM_OVERLAY = "pretrained_cfg_overlay"
"""The argument of timm's models with the changes of a checkpoint's configuration."""

SCRIPT = "training arguments in the checkpoint, else "
"""Beginning of the source of a configuration that arguments of timm's or torchvision's script change."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalisation in torchvision's script, whatever that of a model's published weights is."""
TIMM_SETTINGS = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
CHECKED = ("resize", "crop", "mean", "std", "channels")
"""Fields of `Steps` whose values are checked whatever the library is; its interpolations are its own."""
TIMM_SIZES = ("img_size", "in_chans")

NOTHING = "nothing asks for it"
"""The source of a step that is not requested."""

PARTS = {
    "size": (("resize", "crop"), "as stored"),
    "channels": (("channels",), "default"),
    "normalisation": (("mean", "std"), NOTHING),
}
"""Parts of a description: the fields of `Steps` that determine them, and the source if none of these is set."""


@dataclass(frozen=True)
class Preparation:
    """A function that turns an image into a model's input.

    Args:
        prepare: Function of an image that returns a tensor, shape (channels, height, width).
        channels: Number of channels that it expects.
        arguments: Data arguments that reproduce it.
        sources: Origin of its "size", "channels" and "normalisation", and of the "library".
    """

    prepare: Prepare
    channels: int
    arguments: dict[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict)

    def described(self, shape: tuple[int, ...]) -> str:
        """Describe the steps from an image to an input of shape (C, H, W), with the source of each step."""
        library, settings = next(iter(self.arguments[TRANSFORM].items()))
        steps, sources = STEPS_OF[library](settings), self.sources
        scaling = "scaling to [0, 1] (default)"
        if library == "transformers":
            factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1
            scaling = f"scaling by {factor:.4g} ({sources['library']})"
        mean, std = (", ".join(f"{value:.4g}" for value in as_list(steps.get(name))) for name in ("mean", "std"))
        stated = [f"{name} {values}" for name, values in (("mean", mean), ("std", std)) if values]
        normalisation = f"normalisation {', '.join(stated) or 'none'} ({sources['normalisation']})"
        return f"{described_size(shape, sources['size'], sources['channels'])}, {scaling}, {normalisation}"


def image_preparation(arguments: Mapping[str, Any], hints: ModelHints) -> Preparation:
    """Choose how images are prepared for a model.

    The configuration is timm's for `timm:NAME`, that of the default weights for `torchvision:NAME`, else the image
    processor in the model's directory. Without a configuration only the requested steps are applied.

    Args:
        arguments: Data arguments: fields of `Steps`, which take precedence over the configuration, and `transform`
            (from the arguments of an earlier preparation), which replaces it.
        hints: The model that will receive the images.

    Raises:
        UsageError: For invalid values.
        DataError: If the image processor cannot be read, or a configuration has invalid values.
    """
    chosen = {name: value for name, value in arguments.items() if name in Steps.__dataclass_fields__}
    library, kind = hints.source, UsageError if TRANSFORM in arguments else DataError
    try:
        if TRANSFORM in arguments:
            library, settings = _stated(arguments[TRANSFORM])
            source = f"{TRANSFORM}, {hints.arguments_source}"
        else:
            library, settings, source = _configured(hints)
        steps = STEPS_OF[library](settings)
        try:
            # A library would also make images of a million pixels a side, as a file may ask for.
            Steps(**{name: steps[name] for name in CHECKED if name in steps})
        except UsageError as error:
            raise kind(f"{source}: {error}") from error
        sources = {"library": source}
        for part, (names, default) in PARTS.items():
            stated = source if any(steps.get(name) is not None for name in names) else default
            sources[part] = hints.arguments_source if any(name in chosen for name in names) else stated
        if chosen:
            library, settings = OURS, {**steps, **chosen}
        return Preparation(*TRANSFORMS[library](settings), {TRANSFORM: {library: settings}}, sources)
    except (KeyError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise kind(f"transform: {library} has no such settings ({last_line(error)})") from error


def _configured(hints: ModelHints) -> tuple[str, dict[str, Any], str]:
    """Return the library of the transform in a model's configuration, its settings and their source."""
    changed = SCRIPT if hints.script else ""
    if hints.source == "timm":
        changed += "config.json, else " if TIMM_OVERLAY in hints.arguments else ""
        return "timm", _settings_of_timm(hints), f"{changed}timm's default for {hints.reference}"
    if hints.source == "torchvision":
        return OURS, _steps_of_torchvision(hints), f"{changed}torchvision's default for {hints.reference}"
    directory = hints.directory_with(PROCESSOR_FILE)
    if directory is None:
        return OURS, {}, NOTHING
    settings = _settings_of_processor(directory, hints.sized_arguments().get(IMAGE_SIZE))
    return "transformers", settings, str(directory / PROCESSOR_FILE)


def _stated(transform: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(transform, Mapping) and len(transform) == 1:
        library, settings = next(iter(transform.items()))
        if library in TRANSFORMS and isinstance(settings, Mapping):
            return library, dict(settings)
    raise UsageError(f'transform: expected {{"NAME": {{…}}}}, NAME one of {", ".join(TRANSFORMS)}, found {transform!r}')


def _of_steps(settings: dict[str, Any]) -> tuple[Prepare, int]:
    steps = Steps(**settings)
    return steps, steps.channels


def _of_timm(settings: dict[str, Any]) -> tuple[Prepare, int]:
    timm = require_extra("timm.data", "timm")
    prepare = timm.create_transform(**{name: settings[name] for name in TIMM_SETTINGS}, is_training=False)
    return prepare, settings["input_size"][0]


def _of_transformers(settings: dict[str, Any]) -> tuple[Prepare, int]:
    auto = require_extra("transformers.models.auto.image_processing_auto", "transformers")
    kind = auto.get_image_processor_class_from_name(settings["image_processor_type"])
    return partial(_processed, kind.from_dict(settings)), 3


def _processed(processor: Any, image: "Image") -> Tensor:
    """Pass one image through an image processor of transformers."""
    return torch.as_tensor(processor(images=image, return_tensors="pt")["pixel_values"][0])


def _settings_of_timm(hints: ModelHints) -> dict[str, Any]:
    models, data = require_extra("timm.models", "timm"), require_extra("timm.data", "timm")
    try:
        config = models.get_pretrained_cfg(hints.reference, allow_unregistered=False)
    except RuntimeError as error:
        raise UsageError(f"model timm:{hints.reference}: {last_line(error)}") from error
    arguments = hints.sized_arguments()
    sizes = {name: arguments[name] for name in TIMM_SIZES if name in arguments}
    replaced = {"input_size"} if "img_size" in hints.arguments else set()
    of_script = {*TIMM_SIZES, *TIMM_SETTINGS} - replaced - sizes.keys()
    sizes |= {name: value for name in of_script if (value := hints.script.get(name)) is not None}
    config_values = {**({} if config is None else config.to_dict()), **arguments.get(TIMM_OVERLAY, {})}
    if "in_chans" in sizes and "input_size" in config_values:
        # timm ignores the number of channels unless a size is set; its mean and std are for colour.
        sizes.setdefault("img_size", config_values["input_size"][1])
        for name in ("mean", "std"):
            if sizes["in_chans"] != 3 and name in config_values:
                values = config_values[name]
                config_values[name] = (sum(values) / len(values),) * sizes["in_chans"]
    return data.resolve_data_config(sizes, pretrained_cfg=config_values)


def _steps_of_timm(settings: Mapping[str, Any]) -> dict[str, Any]:
    _, height, width = settings["input_size"]
    scaled = [math.floor(side / settings["crop_pct"]) for side in (height, width)]
    squashed = settings["crop_mode"] == "squash" or height != width
    return {
        "resize": scaled if squashed else scaled[0],
        "crop": height if height == width else [height, width],
        "mean": list(settings["mean"]),
        "std": list(settings["std"]),
        "interpolation": settings["interpolation"],
        "channels": settings["input_size"][0],
    }


def _steps_of_torchvision(hints: ModelHints) -> dict[str, Any]:
    """Return the transform of the weights whose image size is the model's, else of the default weights, scaled."""
    models = require_extra("torchvision.models", "torchvision")
    try:
        weights = models.get_model_weights(hints.reference)
        presets = [weights.DEFAULT.transforms(), *(each.transforms() for each in weights)]
    except (ValueError, AttributeError):
        return {}
    side = hints.sized_arguments().get(IMAGE_SIZE, presets[0].crop_size[0])
    preset = next((each for each in presets if each.crop_size == [side]), presets[0])
    scale = side / preset.crop_size[0]
    resize = [math.floor(scale * size) for size in preset.resize_size]
    steps = {
        "resize": resize[0] if len(resize) == 1 else resize,
        "crop": side,
        "mean": list(preset.mean),
        "std": list(preset.std),
        "interpolation": preset.interpolation.value,
    }
    if hints.script:
        of_script = {"resize": "val_resize_size", "crop": "val_crop_size", "interpolation": "interpolation"}
        steps |= {step: hints.script[name] for step, name in of_script.items() if name in hints.script}
        steps |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    return steps


def _settings_of_processor(directory: Path, side: int | None) -> dict[str, Any]:
    """Return the settings of a directory's image processor, scaled to images of `side` pixels if that is a number."""
    problem = f"{directory / PROCESSOR_FILE}: no image processor of transformers'"
    settings = json.loads(load_auto("AutoImageProcessor", directory, problem).to_json_string())
    sizes = {name: settings[name] for name in ("crop_size", "size") if settings.get(name)}
    if side is None or not sizes:
        return settings
    scale = side / min(next(iter(sizes.values())).values())
    scaled = {name: {key: math.floor(scale * length) for key, length in size.items()} for name, size in sizes.items()}
    return {**settings, **scaled}


def _steps_of_processor(settings: Mapping[str, Any]) -> dict[str, Any]:
    size, cut = settings.get("size") or {}, settings.get("crop_size") or {}
    steps = {
        "resize": size.get("shortest_edge") or ([size["height"], size["width"]] if "height" in size else None),
        "crop": [cut["height"], cut["width"]] if settings.get("do_center_crop") and "height" in cut else None,
        "mean": settings.get("image_mean") if settings.get("do_normalize", True) else None,
        "std": settings.get("image_std") if settings.get("do_normalize", True) else None,
        "interpolation": PILLOWS.get(settings.get("resample", -1), "bilinear"),
    }
    return {name: value for name, value in steps.items() if value is not None}


TRANSFORMS: dict[str, Callable[[dict[str, Any]], tuple[Prepare, int]]] = {
    OURS: _of_steps,
    "timm": _of_timm,
    "transformers": _of_transformers,
}
"""Transforms by library: settings → (function, number of channels)."""

STEPS_OF: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    OURS: dict,
    "timm": _steps_of_timm,
    "transformers": _steps_of_processor,
}
"""Fields of `Steps` closest to the settings of each library's transform."""
