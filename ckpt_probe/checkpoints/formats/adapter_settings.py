"""Settings of a PEFT adapter: those that its merge depends on, those that change nothing, and the refusal of others."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ckpt_probe.errors import DataError
from ckpt_probe.files import read_object

HANDLED = frozenset({
    "alpha_pattern", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "lora_bias", "peft_type", "use_dora",
    "use_rslora",
})  # fmt: skip
WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
"""Settings of training, and those whose effect the tensors of the file show: modules, ranks, biases."""
INITIALISATIONS = (None, True, False, "eva", "gaussian", "mica", "orthogonal")
"""Values of init_lora_weights with which peft leaves the weights of the base unchanged."""
DEFAULT_ALPHA = 8
"""α where a configuration has none, as peft sets it."""
PLAIN = re.compile(r"\^?[\w.-]+")
NOT_MERGED = "is not merged here; merge it with peft's merge_and_unload() and save the result"


def read_settings(path: Path) -> dict[str, Any]:
    """Read an adapter's configuration, of which every setting is understood.

    Args:
        path: `adapter_config.json`.

    Returns:
        The settings by their names.

    Raises:
        DataError: If the adapter is of another kind than LoRA, a setting beyond HANDLED and WITHOUT_EFFECT is on, or a
            number is not one.
    """
    settings = {"lora_alpha": DEFAULT_ALPHA} | read_object(path, "an adapter's configuration")
    kind, start = settings.get("peft_type"), settings.get("init_lora_weights")
    if kind != "LORA":
        raise DataError(f"{path}: an adapter of kind {_short(kind)}, which {NOT_MERGED}, if peft can merge it")
    for name, value in settings.items():
        if value and name not in HANDLED | WITHOUT_EFFECT:
            raise DataError(f"{path}: {name[:80]!r} is {_short(value)}, which {NOT_MERGED}")
    if start not in INITIALISATIONS:
        raise DataError(f"{path}: init_lora_weights is {_short(start)}, which {NOT_MERGED}")
    _require_number(path, "lora_alpha", settings["lora_alpha"])
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise DataError(f"{path}: alpha_pattern is {_short(patterns)}, expected numbers by names of modules")
    for pattern, value in patterns.items():
        _require_number(path, f"alpha_pattern of {pattern[:80]!r}", value)
        if not PLAIN.fullmatch(pattern):
            raise DataError(
                f"{path}: alpha_pattern has {pattern[:80]!r}, a regular expression rather than the name or the end of "
                f"the name of a module, which {NOT_MERGED}"
            )
    return settings


def alphas(settings: Mapping[str, Any]) -> Callable[[str], float]:
    """Return α as a function of a module's name, which the first pattern matches that is it or ends it."""
    patterns: Mapping[str, float] = settings.get("alpha_pattern") or {}
    order = {pattern: position for position, pattern in enumerate(patterns)}

    def alpha_of(module: str) -> float:
        parts = module.split(".")
        ends = [f"^{module}", *(".".join(parts[start:]) for start in range(len(parts)))] if patterns else []
        first = min((end for end in ends if end in order), key=order.__getitem__, default=None)
        return float(settings["lora_alpha"] if first is None else patterns[first])

    return alpha_of


def _require_number(path: Path, name: str, value: Any) -> None:
    if not isinstance(value, int | float) or not abs(value) < 1e30:
        raise DataError(f"{path}: {name} is {_short(value)}, expected a number")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
