"""Changes that a PEFT adapter makes to its base's tensors, and their sum with a tensor.

W' = W + s·B·A with s = α/r (Hu et al. 2021), or α/√r with use_rslora (Kalajdzievski 2023); with a magnitude m (Liu et
al. 2024) W' = m · (W + s·B·A) / ‖W + s·B·A‖, norms over the inputs of each output.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.checkpoints.contents import Contents
from ckpt_probe.checkpoints.formats.adapter_settings import NOT_MERGED, alphas
from ckpt_probe.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

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


def merge(name: str, tensor: "Tensor", adapter: Contents, change: Change) -> "Tensor":
    """Return a weight or bias with its change, of its type, rounded where peft rounds.

    Args:
        name: The tensor's name, which ends in `.weight` or `.bias`.
        tensor: Its value before the change.
        adapter: The tensors of the adapter.
        change: The change of its module.
    """
    import torch

    # As in a model that peft loads: an adapter in half precision is computed with in single.
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
    path: Path, settings: Mapping[str, Any], adapter: Contents
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
    alpha_of = alphas(settings)
    return {
        module: _change(path, settings, adapter, module, roles, alpha_of(module)) for module, roles in parts.items()
    }, replaced


def _change(
    path: Path, settings: Mapping[str, Any], adapter: Contents, module: str, parts: Mapping[str, str], alpha: float
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
