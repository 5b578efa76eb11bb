"""Putting a checkpoint's tensors into a model, or saying exactly why they do not fit."""

from collections.abc import Collection, Mapping, Set

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ckpt_probe.errors import DataError, listed
from ckpt_probe.models.renaming import renamed


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Copy a state dict into a model in place, strictly: same names, same shapes.

    What wrappers (data-parallel, compilation, a training framework's module) put before the names is taken off where
    the names then fit, as `unwrapped` does, and names of earlier versions of transformers are translated. Raises
    DataError naming `source` and listing missing names, unexpected names, other shapes, and whole numbers where the
    model has floats, which are quantised: what they stand for is not in them; or where the names fit after several
    prefixes, listing these.
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
    floating = [name for name, tensor in wanted.items() if tensor.is_floating_point()]
    whole = [name for name in floating if not given[name].is_floating_point()]
    if whole:
        kind = str(given[whole[0]].dtype).removeprefix("torch.")
        raise DataError(
            f"{source}: tensor {whole[0]!r} is {kind}, but the model expects floating point ({len(whole)} such): "
            "a quantised checkpoint; dequantise it first"
        )
    model.load_state_dict(dict(given))


def require_classes(logits: int, classes: int) -> None:
    """Raise DataError where a model gives fewer logits than its data have classes."""
    if logits < classes:
        raise DataError(f"the model gives {logits} logits, fewer than the data's {classes} classes")


def unwrapped(state_dict: Mapping[str, Tensor], wanted: Set[str]) -> Mapping[str, Tensor]:
    """A state dict without what a wrapper put before the names, and without tensors that lie outside the wrapper.

    Only where the names are then exactly the `wanted` ones; else the state dict as it is. `wrapper_note` says so.
    """
    found = _prefixes(state_dict, wanted)
    if len(found) != 1 or found == [""]:
        return state_dict
    prefix = found[0]
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def wrapper_note(names: Collection[str], wanted: Set[str]) -> str | None:
    """What `unwrapped` takes off and leaves out, as a sentence; None where it does nothing."""
    found = _prefixes(names, wanted)
    if len(found) != 1 or found == [""]:
        return None
    outside = sorted(name for name in names if not name.startswith(found[0]))
    left_out = f"; {len(outside)} tensors outside it are left out: {listed(outside)}" if outside else ""
    return f"tensor names lose their prefix {found[0]!r} to fit the model{left_out}"


def _prefixes(names: Collection[str], wanted: Set[str]) -> list[str]:
    """Every text, perhaps empty, after which the names that begin with it are exactly the wanted ones."""
    if not wanted:
        return []
    if set(names) == wanted:
        return [""]
    shortest = min(wanted, key=len)
    likely = {name[: -len(shortest)] for name in names if name.endswith(f".{shortest}")}
    below = {prefix: {name.removeprefix(prefix) for name in names if name.startswith(prefix)} for prefix in likely}
    return sorted(prefix for prefix, rest in below.items() if rest == wanted)
