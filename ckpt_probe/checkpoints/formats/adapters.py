"""PEFT adapters: low-rank changes of some weights, merged onto the checkpoint that they were trained on.

W' = W + s·B·A with s = α/r, or α/√r where the configuration says so (Hu et al. 2021; Kalajdzievski 2023); with a
magnitude m (Liu et al. 2024) W' = m · (W + s·B·A) / ‖W + s·B·A‖, norms over the inputs of each output. As peft's own
`merge_and_unload` does; tested against it.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.checkpoints.contents import Asked, Contents
from ckpt_probe.checkpoints.folders import ADAPTER_CONFIG as CONFIG
from ckpt_probe.checkpoints.formats.earlier_names import names_today
from ckpt_probe.checkpoints.formats.pickled import open_pickled
from ckpt_probe.checkpoints.formats.safe import open_file
from ckpt_probe.checkpoints.formats.signatures import STREAM, ZIP
from ckpt_probe.checkpoints.tensors import filler
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.files import read_object, require_regular
from ckpt_probe.remote import read_at

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "base_model.model."
ROLES = {
    "lora_A.weight": "a", "lora_B.weight": "b", "lora_embedding_A": "a", "lora_embedding_B": "b",
    "lora_B.bias": "bias", "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
"""Ends of an adapter's names, and the role of the tensor."""
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
ELSEWHERE = "merged here; merge it with peft's merge_and_unload() and save the result"
OF_ANOTHER_KIND = re.compile(r"\.(lora_|ia3_|vera_|hada_|lokr_|oft_|boft_|randlora_|token_adapter\.|trainable_tokens)")


@dataclass(frozen=True)
class Change:
    """What an adapter does to one module: names of its tensors by their role, rank r, scale s.

    transposed: the weight has its inputs along the first axis, as embeddings and GPT-2's layers have.
    """

    parts: Mapping[str, str]
    rank: int
    scale: float
    transposed: bool


@contextmanager
def open_adapter(path: Path, asked: Asked) -> Iterator[Contents]:
    """Open an adapter's weights merged onto `asked.base`, which is any checkpoint.

    The base that the configuration names is told, never opened by itself. Raises UsageError where no base is given;
    DataError where the adapter is of a kind that is not merged, or does not fit the base.
    """
    config = read_object(path.parent / CONFIG, "an adapter's configuration")
    if asked.base is None:
        named = config.get("base_model_name_or_path") or "not named in its configuration"
        raise UsageError(
            f"{path}: a PEFT adapter; name the checkpoint that it was trained on ({named}) with --base PATH"
        )
    if config.get("peft_type") != "LORA":
        raise DataError(f"{path}: an adapter of kind {config.get('peft_type')!r}, only LORA is {ELSEWHERE}")
    base = asked.base
    with _opened(path) as adapter:
        changes, replaced = _roles(path, config, adapter)
        changed = {f"{module}.{kind}": module for module, change in changes.items() for kind in _kinds(change)}
        own = _called(path, base, list(changed))
        for name, module in changed.items():
            _require_fit(path, base, name, own[name], adapter, changes[module])
        layout = {name: base.layout[its] for name, its in own.items()}
        layout |= {name: adapter.layout[its] for name, its in replaced.items()}

        def read(name: str) -> "Tensor":
            if name in replaced:
                return adapter.read(replaced[name])
            tensor = base.read(own[name])
            return _merged(name, tensor, adapter, changes[changed[name]]) if name in changed else tensor

        yield Contents(
            path=path,
            format=f"PEFT adapter merged onto {base.format}",
            files=(path.parent / CONFIG, *adapter.files, *base.files),
            layout=layout,
            read=read,
            fill=filler(read),
            beside={"adapter": _told(config, changes, replaced, base)},
            state_key=base.state_key,
            others=base.others,
            dropped=base.dropped,
        )


def _opened(path: Path) -> AbstractContextManager[Contents]:
    require_regular(path)
    head = read_at(path, 0, len(STREAM))
    return open_pickled(path, Asked()) if head.startswith((ZIP, STREAM)) else open_file(path, Asked())


def _roles(path: Path, config: Mapping[str, Any], adapter: Contents) -> tuple[dict[str, Change], dict[str, str]]:
    """What happens to each module by its name, and the names of tensors that take the place of the base's own."""
    parts: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for name in adapter.layout:
        bare = name.removeprefix(PREFIX)
        end = next((end for end in ROLES if bare.endswith(f".{end}")), None)
        if end is not None:
            parts.setdefault(bare.removesuffix(f".{end}"), {})[ROLES[end]] = name
        elif OF_ANOTHER_KIND.search(f".{bare}"):
            raise DataError(f"{path}: tensor {name!r} is of a kind that is not {ELSEWHERE}")
        else:
            replaced[bare.replace(".modules_to_save.", ".").replace(".base_layer.", ".")] = name
    return {module: _change(path, config, adapter, module, found) for module, found in parts.items()}, replaced


def _change(path: Path, config: Mapping[str, Any], adapter: Contents, module: str, parts: Mapping[str, str]) -> Change:
    if not {"a", "b"} <= set(parts) or not all(adapter.layout[name][1] for name in parts.values()):
        raise DataError(f"{path}: one of the two matrices for {module!r} is missing")
    rank = adapter.layout[parts["a"]][1][0]
    embedding = "lora_embedding" in parts["a"]
    if "magnitude" in parts and (embedding or len(adapter.layout[parts["a"]][1]) != 2):
        raise DataError(
            f"{path}: {module!r} has a magnitude (DoRA), which for other than linear layers is not {ELSEWHERE}"
        )
    scale = _alpha(path, config, module) / (math.sqrt(rank or 1) if config.get("use_rslora") else rank or 1)
    return Change(parts, rank, scale, embedding or bool(config.get("fan_in_fan_out")))


def _kinds(change: Change) -> tuple[str, ...]:
    return ("weight", "bias") if "bias" in change.parts else ("weight",)


def _alpha(path: Path, config: Mapping[str, Any], module: str) -> float:
    """α of a module: the configuration's own, or that of a pattern that its name ends in."""
    alpha = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    try:
        found = (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
        alpha = next(found, alpha)
    except (re.error, AttributeError, TypeError) as error:
        raise DataError(f"{path.parent / CONFIG}: alpha_pattern cannot be read ({error})") from error
    if not isinstance(alpha, int | float):
        raise DataError(f"{path.parent / CONFIG}: lora_alpha is {alpha!r}, expected a number")
    return float(alpha)


def _called(path: Path, base: Contents, changed: list[str]) -> dict[str, str]:
    """The base's names by what the adapter calls them: equal, or one of the two has a first part that the other lacks.

    A model with a head calls its backbone "bert.…", which saved by itself has no such name, and the reverse. Where a
    configuration lies beside the base, the adapter may also have the names of today where the base has earlier ones.
    """
    if all(name in base.layout for name in changed):
        return {name: name for name in base.layout}
    first = {name.partition(".")[0] for name in changed}
    if len(first) == 1:
        start = f"{first.pop()}."
        if all(name.removeprefix(start) in base.layout for name in changed):
            return {f"{start}{name}": name for name in base.layout}
    for start in dict.fromkeys(f"{name.partition('.')[0]}." for name in base.layout):
        if all(f"{start}{name}" in base.layout for name in changed):
            return {name.removeprefix(start): name for name in base.layout}
    today = names_today(base)
    if all(name in today for name in changed):
        return today
    missing = [name for name in changed if name not in base.layout]
    raise DataError(f"{path}: does not fit its base {base.path}, which has no {listed(missing)}")


def _require_fit(path: Path, base: Contents, name: str, own: str, adapter: Contents, change: Change) -> None:
    dtype, shape = base.layout[own]
    if dtype not in FLOATING:
        raise DataError(f"{base.path}: tensor {own!r} is {dtype}: an adapter cannot be merged onto quantised weights")
    a, b = (adapter.layout[change.parts[role]][1] for role in "ab")
    if name.endswith(".bias"):
        wanted = adapter.layout[change.parts["bias"]][1]
    elif len(a) == 2:
        wanted = (b[0], a[1]) if not change.transposed else (a[1], b[0])
    else:
        wanted = (b[0], *a[1:])
    if wanted != shape or len(a) != len(b) or len(b) < 2 or b[1] != change.rank:
        raise DataError(f"{path}: changes {name!r} by {wanted}, which in its base {base.path} has shape {shape}")


def _merged(name: str, tensor: "Tensor", adapter: Contents, change: Change) -> "Tensor":
    import torch

    parts = {role: adapter.read(own) for role, own in change.parts.items()}
    # As peft does: half precision is multiplied in single, and its product rounded before the sum.
    kind = parts["b"].dtype
    exact = torch.float32 if kind in (torch.float16, torch.bfloat16) else kind
    if name.endswith(".bias"):
        return (tensor + parts["bias"] * change.scale).to(tensor.dtype)
    a, b = parts["a"].to(exact), parts["b"].to(exact)
    product = (b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)).reshape(b.shape[0], *a.shape[1:])
    delta = ((product.T if change.transposed else product) * change.scale).to(kind)
    summed = tensor + delta
    if "magnitude" in parts:
        norms = torch.linalg.vector_norm(summed, dim=0 if change.transposed else 1, keepdim=True)
        summed = summed * (parts["magnitude"].reshape(norms.shape) / norms)
    return summed.to(tensor.dtype)


def _told(
    config: Mapping[str, Any], changes: Mapping[str, Change], replaced: Mapping[str, str], base: Contents
) -> dict[str, Any]:
    ranks = sorted({change.rank for change in changes.values()})
    return {
        "kind": "LoRA",
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "alpha": config.get("lora_alpha"),
        "changed": len(changes),
        "replaced": sorted(replaced),
        "base": str(base.path),
    }
