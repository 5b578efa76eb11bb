"""Settings of a PEFT adapter, the changes that it makes to its base's tensors, and their sum with a tensor.

W' = W + s·B·A with s = α/r (Hu et al. 2021), or α/√r with use_rslora (Kalajdzievski 2023); with a magnitude m (Liu et
al. 2024) W' = m · (W + s·B·A) / ‖W + s·B·A‖, norms over the inputs of each output.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.checkpoints.checkpoint import Checkpoint
from ckpt_probe.errors import DataError
from ckpt_probe.files import read_object

if TYPE_CHECKING:
    from torch import Tensor

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

PREFIX = "base_model.model."
ROLES = {
    "lora_A.weight": "a", "lora_B.weight": "b", "lora_embedding_A": "a", "lora_embedding_B": "b",
    "lora_B.bias": "bias", "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
"""Ends of an adapter's names, and the role of the tensor."""
OTHER_PARTS = re.compile(r"\.(lora_|token_adapter\.)")
COPIES = (".original_module.", ".modules_to_save.")
"""Parts of names of a module's second copies, which bias="all" saves beside the trained one; peft reads neither."""
BASE_LAYER = ".base_layer."


@dataclass(frozen=True)
class Change:
    """Change of one module by an adapter.

    parts: names of its tensors by their role. rank: r. scale: s. embedding: the module is an embedding. rounded: s·B·A
    is rounded to the weight's type before the sum. transposed: the weight has its inputs along the first axis, as
    embeddings and GPT-2's layers have.
    """

    parts: Mapping[str, str]
    rank: int
    scale: float
    embedding: bool
    rounded: bool
    transposed: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Tensors of the module that change, by the last part of their names."""
        return ("weight", "bias") if "bias" in self.parts else ("weight",)


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


def merge(name: str, tensor: "Tensor", adapter: Checkpoint, change: Change) -> "Tensor":
    """Return a weight or bias with its change, of its type, rounded where peft rounds.

    Args:
        name: The tensor's name, which ends in `.weight` or `.bias`.
        tensor: Its value before the change.
        adapter: The tensors of the adapter.
        change: The change of its module.
    """
    import torch

    # peft too computes with an adapter of half precision in single precision.
    exact = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    parts = {role: adapter.read(part).to(exact) for role, part in change.parts.items()}
    if name.endswith(".bias"):
        return (tensor + parts["bias"] * change.scale).to(tensor.dtype)
    a, b = parts["a"], parts["b"]
    product = (b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)).reshape(b.shape[0], *a.shape[1:])
    delta = (product.T if change.transposed else product) * change.scale
    summed = tensor + (delta.to(tensor.dtype) if change.rounded else delta)
    if "magnitude" in parts:
        inputs = (0,) if change.transposed else tuple(range(1, summed.ndim))
        norms = torch.linalg.vector_norm(summed, dim=inputs, keepdim=True)
        summed = summed * (parts["magnitude"].reshape(norms.shape) / norms)
    return summed.to(tensor.dtype)


def read_changes(
    path: Path, settings: Mapping[str, Any], adapter: Checkpoint
) -> tuple[dict[str, Change], dict[str, str]]:
    """Return the change of each module, and the adapter's tensors that replace the base's.

    Args:
        path: The adapter's file, for messages.
        settings: Its configuration.
        adapter: Its tensors.

    Returns:
        Changes by the names of modules, and names in the adapter by names in the model.

    Raises:
        DataError: If a tensor is of a kind that is not merged, or a part of a change is missing.
    """
    parts: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    copies: dict[str, str] = {}
    for name in adapter.layout:
        bare = name.removeprefix(PREFIX)
        end = next((end for end in ROLES if bare.endswith(f".{end}")), None)
        copy = next((part for part in COPIES if part in bare), None)
        if end is not None and BASE_LAYER not in bare:
            parts.setdefault(bare.removesuffix(f".{end}"), {})[ROLES[end]] = name
        elif end is not None or OTHER_PARTS.search(f".{bare}"):
            raise DataError(f"{path}: tensor {name!r} is of a kind that {NOT_MERGED}")
        elif copy is not None:
            copies[bare.replace(copy, ".")] = name
        else:
            replaced[bare.replace(BASE_LAYER, ".")] = name
    alone = next((name for trained, name in copies.items() if trained not in replaced), None)
    if alone is not None:
        raise DataError(f"{path}: tensor {alone!r} is a second copy of a module whose trained one is missing")
    alpha_of = _alphas(settings)
    return {
        module: _change(path, settings, adapter, module, roles, alpha_of(module)) for module, roles in parts.items()
    }, replaced


def _change(
    path: Path, settings: Mapping[str, Any], adapter: Checkpoint, module: str, parts: Mapping[str, str], alpha: float
) -> Change:
    expected = {"a", "b"}
    expected |= {"magnitude"} if settings.get("use_dora") else set()
    expected |= {"bias"} if settings.get("lora_bias") else set()
    if set(parts) != expected or not all(adapter.layout[name][1] for name in parts.values()):
        have, want = (", ".join(sorted(roles)) for roles in (parts, expected))
        raise DataError(f"{path}: {module!r} has the parts {have}, where its configuration says {want}")
    rank = adapter.layout[parts["a"]][1][0]
    embedding = "lora_embedding" in parts["a"]
    return Change(
        parts=parts,
        rank=rank,
        scale=alpha / (math.sqrt(rank or 1) if settings.get("use_rslora") else rank or 1),
        embedding=embedding,
        rounded="magnitude" not in parts and (embedding or settings.get("init_lora_weights") == "mica"),
    )


def _alphas(settings: Mapping[str, Any]) -> Callable[[str], float]:
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
