"""Putting a checkpoint's tensors into a model, or saying exactly why they do not fit."""

from collections.abc import Collection, Mapping, Set
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ckpt_probe.errors import DataError, listed
from ckpt_probe.models.renaming import renamed
from ckpt_probe.models.tying import shared_names, untie

WITHIN = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What compilation and sharding of single layers put within names."""
COUNTER = "num_batches_tracked"
"""A buffer of batch norm that files older than torch 0.4.1 lack, and that does not count in evaluation."""
QUANTISED = (".qweight", ".weight_packed", ".weight.absmax", ".SCB", ".weight_scale_inv")
"""Ends of names that only quantised checkpoints have."""

Value = TypeVar("Value")


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> tuple[str, ...]:
    """Copy a state dict into a model in place, strictly: same names, same shapes.

    What wrappers (data-parallel, compilation, a training framework's module) put before the names is taken off where
    the names then fit, as `unwrapped` does, and names of earlier versions of transformers are translated. Counters of
    batch norm may be absent, and tensors that the model ties to others.

    Args:
        model: The model, changed in place; tensors that it ties are treated as `untie` says where their values differ.
        state_dict: Tensors by name.
        source: The file, for messages.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        DataError: If names are missing or unexpected, a shape differs, the model has floats where the file has whole
            numbers (quantised weights), or the names fit after several prefixes; the message lists them.
    """
    wanted = model.state_dict()
    prefixes = _prefixes(state_dict, set(wanted))
    if len(prefixes) > 1:
        told = ", ".join(prefixes)
        raise DataError(
            f"{source}: contains weights for the whole model under several prefixes: {told}; choose one with "
            f"--state-key {prefixes[0].rstrip('.')}"
        )
    given = renamed(model, unwrapped(state_dict, set(wanted)))
    _require_floats(wanted, given, source)
    given = {**_absent(wanted, given), **given}
    missing = sorted(set(wanted) - set(given))
    unexpected = sorted(set(given) - set(wanted))
    misshapen = [
        f"{name} {tuple(given[name].shape)} for {tuple(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(given))
        if not is_lazy(wanted[name]) and given[name].shape != wanted[name].shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
    told = [f"{len(names)} {what}: {listed(names)}" for what, names in faults if names]
    if told:
        raise DataError(f"{source}: the model does not fit the checkpoint; {'; '.join(told)}")
    notes = untie(model, given)
    model.load_state_dict(given)
    return notes


def require_classes(logits: int, classes: int) -> None:
    """Raise DataError where a model gives fewer logits than its data have classes."""
    if logits < classes:
        raise DataError(f"the model gives {logits} logits, fewer than the data's {classes} classes")


def unwrapped(state_dict: Mapping[str, Value], wanted: Set[str]) -> Mapping[str, Value]:
    """A state dict without what a wrapper put before the names, and without tensors that lie outside the wrapper.

    Only where the names are then exactly the `wanted` ones, but for counters of batch norm; else the state dict as it
    is. `wrapper_note` says so.
    """
    return {new: state_dict[old] for old, new in fitting_names(state_dict, wanted).items()}


def fitting_names(names: Collection[str], wanted: Set[str]) -> Mapping[str, str]:
    """Name in the checkpoint → name in the model, of those that `unwrapped` takes."""
    found = _prefixes(names, wanted)
    if len(found) != 1:
        return {name: name for name in names}
    bare = {name: _without(name, wanted) for name in names}
    return {name: inner.removeprefix(found[0]) for name, inner in bare.items() if inner.startswith(found[0])}


def wrapper_note(names: Collection[str], wanted: Set[str]) -> str | None:
    """What `unwrapped` takes off and leaves out, as a sentence; None where it does nothing."""
    found = _prefixes(names, wanted)
    called = fitting_names(names, wanted)
    if all(old == new for old, new in called.items()):
        return None
    outside = sorted(set(names) - set(called))
    left_out = f"; {len(outside)} tensors outside it are left out: {listed(outside)}" if outside else ""
    within = sorted({part for name in called for part in name.split(".") if part in WITHIN and name not in wanted})
    prefix = f"their prefix {found[0]!r}" if found[0] else listed([repr(part) for part in within])
    return f"tensor names lose {prefix} to fit the model{left_out}"


def _prefixes(names: Collection[str], wanted: Set[str]) -> list[str]:
    """Every text, perhaps empty, after which the names that begin with it are exactly the wanted ones."""
    if not wanted:
        return []
    if set(names) == wanted:
        return [""]
    needed = {name for name in wanted if not name.endswith(COUNTER)} or wanted
    bare = [_without(name, wanted) for name in names]
    shortest = min(needed, key=len)
    likely = {name[: -len(shortest)] for name in bare if name == shortest or name.endswith(f".{shortest}")}
    below = {prefix: {name.removeprefix(prefix) for name in bare if name.startswith(prefix)} for prefix in likely}
    return sorted(prefix for prefix, rest in below.items() if needed <= rest <= wanted)


def _without(name: str, wanted: Set[str]) -> str:
    """A name without what wrappers of single layers put within it, unless the model has it so."""
    return name if name in wanted else ".".join(part for part in name.split(".") if part not in WITHIN)


def _absent(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the model that a checkpoint may lack: counters of batch norm, and twins of what it has."""
    counters = {name: tensor for name, tensor in wanted.items() if name.endswith(COUNTER)}
    known = [(names, [name for name in names if name in given]) for names in shared_names(wanted)]
    return counters | {name: given[present[-1]] for names, present in known if present for name in names}


def _require_floats(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Raise DataError for quantised weights, before it is said how their names and shapes do not fit."""
    floating = [name for name, tensor in wanted.items() if tensor.is_floating_point()]
    whole = [name for name in floating if name in given and not given[name].is_floating_point()]
    if whole:
        kind = str(given[whole[0]].dtype).removeprefix("torch.")
        raise DataError(
            f"{source}: tensor {whole[0]!r} is {kind}, but the model expects floating point ({len(whole)} such): "
            "a quantised checkpoint; dequantise it first"
        )
    packed = [name for name in given if f".{name}".endswith(QUANTISED) and name not in wanted]
    if packed:
        raise DataError(f"{source}: tensor {packed[0]!r} belongs to a quantised checkpoint; dequantise it first")
