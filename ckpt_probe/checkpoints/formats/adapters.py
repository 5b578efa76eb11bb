"""PEFT adapters: low-rank changes of some weights, merged onto the checkpoint that they were trained on.

The weights are those of peft's `merge_and_unload`, or the adapter is refused. peft itself is not called: it needs the
whole model in memory and code that builds it, where here any file is read one tensor at a time.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckpt_probe.checkpoints.checkpoint import Checkpoint
from ckpt_probe.checkpoints.folders import CONFIG
from ckpt_probe.checkpoints.formats import opener
from ckpt_probe.checkpoints.formats.adapter_changes import NOT_MERGED, Change, merge, read_changes, read_settings
from ckpt_probe.checkpoints.formats.pickled import filler
from ckpt_probe.checkpoints.parts import ADAPTER_CONFIG, ModelFiles
from ckpt_probe.checkpoints.tensors import TORCH_NAMES, Layout
from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.files import read_object
from ckpt_probe.plugins import load_pretrained, loaded_by_transformers, require_extra

if TYPE_CHECKING:
    from torch import Tensor

FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
MOST_ALIKE = 8
"""Weights of one shape up to which they are compared: embeddings and heads are few, layers of a network are many."""


def open_adapter(files: ModelFiles, state_key: str | None, base: Checkpoint | None, stack: ExitStack) -> Checkpoint:
    """Open an adapter's weights merged onto `base`, which is any checkpoint.

    The base that the configuration names is only mentioned, never opened by itself.

    Raises:
        UsageError: If there is no base.
        DataError: If the adapter has a setting or a tensor that is not merged, or does not fit the base.
    """
    path = files.file
    settings = read_settings(path.parent / ADAPTER_CONFIG)
    if base is None:
        named = settings.get("base_model_name_or_path") or "not named in its configuration"
        raise UsageError(f"{path}: a PEFT adapter; name the checkpoint that it was trained on ({named}) with `base=`")
    weights = replace(files, kind=path.suffix)
    adapter = opener(weights)(weights, None, None, stack)
    changes, replaced = read_changes(path, settings, adapter)
    changed = {f"{module}.{kind}": module for module, change in changes.items() for kind in change.kinds}
    names = _names(path, base, list(changed))
    names |= _no_longer_tied(base, names, set(replaced) - set(changed))
    layout = _layout(base, names, adapter, replaced)

    def unchanged(name: str) -> "Tensor":
        import torch

        if name not in replaced:
            return base.read(names[name])
        # Convert to the dtype of the base, as loading into a parameter of a model does.
        dtype = layout[name][0]
        return adapter.read(replaced[name]).to(getattr(torch, TORCH_NAMES.get(dtype, dtype)))

    def read(name: str) -> "Tensor":
        tensor = unchanged(name)
        return merge(name, tensor, adapter, changes[changed[name]]) if name in changed else tensor

    for name, module in changed.items():
        _require_fit(path, base, name, layout[name], adapter, changes[module])
    _require_untied(path, layout, names, changed, unchanged)
    changes = _oriented(path, settings, layout, adapter, changes)
    ranks = sorted({change.rank for change in changes.values()})
    summary = {
        "kind": "LoRA",
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "alpha": settings["lora_alpha"],
        "changed": len(changes),
        "replaced": sorted(replaced),
        "base": str(base.file),
    }
    return Checkpoint(
        file=path,
        format=f"PEFT adapter merged onto {base.format}",
        files=(path.parent / ADAPTER_CONFIG, *adapter.files, *base.files),
        layout=layout,
        reader=read,
        fill=filler(read),
        extras={"adapter": summary},
        state_key=base.state_key,
        others=base.others,
        dropped=base.dropped,
    )


def _names(path: Path, base: Checkpoint, changed: list[str]) -> dict[str, str]:
    """Return the base's names by those of the adapter's model: equal, or one has a first part that the other lacks.

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
    today = _present_names(base)
    if all(name in today for name in changed):
        return today
    missing = [name for name in changed if name not in base.layout]
    raise DataError(f"{path}: does not fit its base {base.file}, which has no {listed(missing)}")


def _no_longer_tied(base: Checkpoint, names: Mapping[str, str], replaced: set[str]) -> dict[str, str]:
    """Return other names of the base's embeddings that an adapter replaces, as transformers ties them.

    peft replaces the module of one name; the others keep the base's weights, which one name in its file stands for.
    """
    directory = base.config_directory
    files = {names[name] for name in replaced if name in names and len(base.layout[names[name]][1]) == 2}
    if directory is None or not files:
        return {}
    config = read_object(directory / CONFIG, "a model's configuration")
    if config.get("tie_word_embeddings") is False:
        # Known without the slow import of transformers.
        return {}
    files = {file for file in files if base.layout[file][1][0] == config.get("vocab_size")}
    return {name: file for name, file in _present_names(base).items() if file in files} if files else {}


def _layout(base: Checkpoint, names: Mapping[str, str], adapter: Checkpoint, replaced: Mapping[str, str]) -> Layout:
    layout = {name: base.layout[file] for name, file in names.items()}
    for name, file in replaced.items():
        dtype, shape = adapter.layout[file]
        layout[name] = (layout[name][0] if name in layout else dtype, shape)
    return layout


def _require_fit(
    path: Path, base: Checkpoint, name: str, entry: tuple[str, tuple[int, ...]], adapter: Checkpoint, change: Change
) -> None:
    dtype, shape = entry
    if dtype not in FLOATING:
        raise DataError(f"{base.file}: tensor {name!r} is {dtype}: an adapter cannot be merged onto quantised weights")
    for part in change.parts.values():
        if (kind := adapter.layout[part][0]) not in FLOATING and not kind.startswith("F8"):
            raise DataError(f"{path}: tensor {part!r} is {kind}; only floating-point numbers are merged")
    sides = {role: adapter.layout[part][1] for role, part in change.parts.items()}
    a, b = sides["a"], sides["b"]
    fit = len(a) == len(b) >= 2 and b[1] == change.rank > 0 and set(b[2:]) <= {1}
    wanted = [sides["bias"]] if name.endswith(".bias") else [(*b[:1], *a[1:])]
    if len(a) == 2 and not name.endswith(".bias"):
        wanted = [(a[1], b[0])] if change.embedding else [*wanted, (a[1], b[0])]
    if not fit or shape not in wanted or math.prod(sides.get("magnitude", b[:1])) != b[0]:
        raise DataError(f"{path}: changes {name!r} by {wanted[0]}, which in its base {base.file} has shape {shape}")


def _require_untied(
    path: Path, layout: Layout, names: Mapping[str, str], changed: Mapping[str, str], read: "Callable[[str], Tensor]"
) -> None:
    """Raise DataError where an adapter changes a weight that the base has under another name too.

    peft adds the changes of all names to the one tensor that its model has.
    """
    import torch

    of_a_file: dict[str, list[str]] = {}
    alike: dict[object, list[str]] = {}
    for name, file in names.items():
        of_a_file.setdefault(file, []).append(name)
        alike.setdefault(layout[name], []).append(name)
    for name in changed:
        tied = next((other for other in of_a_file[names[name]] if other != name), None)
        candidates = alike[layout[name]] if len(layout[name][1]) == 2 else []
        if tied is None and len(candidates) <= MOST_ALIKE:
            others = (other for other in candidates if _module(other) != _module(name))
            tied = next((other for other in others if torch.equal(read(other), read(name))), None)
        if tied is not None:
            raise DataError(f"{path}: changes {name!r}, in its base the same tensor as {tied!r}, which {NOT_MERGED}")


def _module(name: str) -> str:
    return name.rpartition(".")[0].rpartition(".")[2]


def _oriented(
    path: Path, settings: Mapping[str, Any], layout: Layout, adapter: Checkpoint, changes: Mapping[str, Change]
) -> dict[str, Change]:
    """Return changes with the axis of the inputs: as shapes show it; of square weights, as the configuration does.

    Raises:
        DataError: If the model has linear layers of both kinds and a square one is changed. peft saves fan_in_fan_out
            of the last layer only, and tells the kinds apart by the classes of the modules.
    """
    oriented: dict[str, Change] = {}
    square: list[str] = []
    kinds = {bool(settings.get("fan_in_fan_out"))}
    for name, (_, shape) in layout.items():
        biases = layout.get(f"{name.removesuffix('weight')}bias", ("", ()))[1]
        if len(shape) == 2 and shape[0] != shape[1] and biases in {shape[:1], shape[1:]}:
            kinds.add(biases == shape[1:])
    for module, change in changes.items():
        shape = layout[f"{module}.weight"][1]
        a, b = (adapter.layout[change.parts[role]][1] for role in "ab")
        transposed = change.embedding or (len(a) == 2 and shape != (b[0], a[1]))
        oriented[module] = replace(change, transposed=transposed)
        if len(a) == 2 and not change.embedding and len(set(shape)) == 2:
            kinds.add(transposed)
        elif len(a) == 2 and not change.embedding:
            square.append(module)
    if square and len(kinds) > 1:
        raise DataError(
            f"{path}: changes the square weight {square[0]!r} of a model that has both kinds of linear layers, "
            f"transposed (Conv1D) and not, which {NOT_MERGED}"
        )
    return oriented | {module: replace(changes[module], transposed=kinds == {True}) for module in square}


def _present_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Return present names of tensors in transformers with their names in the checkpoint, for unchanged tensors.

    Files of some models have the names of earlier versions. The result is empty if there is no `config.json` beside the
    checkpoint, if transformers is not installed, or if it does not have the model.
    """
    directory = checkpoint.config_directory
    if directory is None:
        return {}
    try:
        transformers = require_extra("transformers", "transformers")
        config = load_pretrained(transformers.AutoConfig, directory)
        model_class = getattr(transformers, (config.architectures or [""])[0])
    except (UsageError, OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        return {}
    return _names_by_loading(model_class, config, checkpoint)


def _names_by_loading(model_class: Any, config: Any, checkpoint: Checkpoint) -> dict[str, str]:
    """Return names found by loading a distinct number in place of each tensor, repeated without using memory."""
    import torch

    names = list(checkpoint.layout)
    numbered = {
        name: torch.tensor(float(number)).expand(checkpoint.layout[name][1]) for number, name in enumerate(names)
    }
    loaded, _ = loaded_by_transformers(model_class, config, numbered)
    ranges = {name: tensor.aminmax() for name, tensor in loaded.items() if tensor.numel()}
    return {name: names[int(low)] for name, (low, high) in ranges.items() if low == high}
