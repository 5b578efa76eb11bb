"""Putting a checkpoint's tensors into a model, or saying exactly why they do not fit."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ckpt_probe.errors import DataError, listed
from ckpt_probe.models.renaming import renamed
from ckpt_probe.wrappers import COUNTER, fitting_prefixes, unwrapped

QUANTISED = (".qweight", ".weight_packed", ".weight.absmax", ".SCB", ".weight_scale_inv")
"""Ends of names that only quantised checkpoints have."""


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Copy a state dict into a model in place, strictly: same names, same shapes.

    What wrappers (data-parallel, compilation, a training framework's module) put before the names is taken off where
    the names then fit, as `unwrapped` does, and names of earlier versions of transformers are translated. Counters of
    batch norm may be absent, and tensors that the model ties to others. Raises DataError naming `source` and listing
    missing names, unexpected names, other shapes, and whole numbers where the model has floats, which are quantised:
    what they stand for is not in them; or where the names fit after several prefixes, listing these.
    """
    wanted = model.state_dict()
    prefixes = fitting_prefixes(state_dict, set(wanted))
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
    model.load_state_dict(given)


def require_classes(logits: int, classes: int) -> None:
    """Raise DataError where a model gives fewer logits than its data have classes."""
    if logits < classes:
        raise DataError(f"the model gives {logits} logits, fewer than the data's {classes} classes")


def _absent(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the model that a checkpoint may lack: counters of batch norm, and twins of what it has."""
    known = [name for name, tensor in wanted.items() if name in given and not is_lazy(tensor)]
    twins = {wanted[name].data_ptr(): given[name] for name in known if wanted[name].data_ptr()}
    counters = {name: tensor for name, tensor in wanted.items() if name.endswith(COUNTER)}
    others = [name for name, tensor in wanted.items() if name not in given and not is_lazy(tensor)]
    return counters | {name: twins[wanted[name].data_ptr()] for name in others if wanted[name].data_ptr() in twins}


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
