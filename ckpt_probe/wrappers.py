"""Names of tensors: prefixes that wrappers add (data parallelism, compilation, a trainer), and names of copies."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import TypeVar

from ckpt_probe.errors import listed

WITHIN = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts that compilation and sharding of single layers insert into names."""
COUNTER = "num_batches_tracked"
"""A buffer of batch norm that files older than torch 0.4.1 lack, and that does not count in evaluation."""
EXTRA_STATE = "_extra_state"
"""Last part of the name under which torch keeps the value of a module's `get_extra_state`."""
WEIGHT_NORM = {"_g": "original0", "_v": "original1"}
"""Ends of names in torch.nn.utils.weight_norm, and the tensors of the parametrization that torch loads them into."""

COPY = re.compile(r"(^|[._])(ema|swa|k|key|slow|shadow|teacher|momentum|target|avg|averaged?|moving)(?=[._\d]|$)", re.I)
"""Part of a name of an averaged or delayed copy of a network, such as `ema` and `teacher`."""

Value = TypeVar("Value")
Entry = TypeVar("Entry")


def unwrapped(state_dict: Mapping[str, Value], wanted: Set[str]) -> Mapping[str, Value]:
    """Return a state dict without the prefix of a wrapper in its names, and without tensors outside the wrapper.

    The state dict is unchanged unless the names without the prefix are exactly the wanted ones, apart from counters of
    batch norm. `wrapper_note` describes the change.
    """
    return {new: state_dict[old] for old, new in fitting_names(state_dict, wanted).items()}


def fitting_names(names: Collection[str], wanted: Set[str]) -> Mapping[str, str]:
    """Return a mapping from names in the checkpoint to names in the model, for the tensors that `unwrapped` returns."""
    prefixes = fitting_prefixes(names, wanted)
    if len(prefixes) != 1:
        return {name: name for name in names}
    bare = {name: _without_within(name, wanted) for name in names}
    return {name: inner.removeprefix(prefixes[0]) for name, inner in bare.items() if inner.startswith(prefixes[0])}


def wrapper_note(names: Collection[str], wanted: Set[str], target: str = "the model") -> str | None:
    """Return a sentence about the changes that `unwrapped` makes to fit a target, None without changes."""
    prefixes = fitting_prefixes(names, wanted)
    called = fitting_names(names, wanted)
    if all(old == new for old, new in called.items()):
        return None
    outside = sorted(set(names) - set(called))
    left_out = f"; {len(outside)} tensors outside it are left out: {listed(outside)}" if outside else ""
    within = sorted({part for name in called for part in name.split(".") if part in WITHIN and name not in wanted})
    prefix = f"their prefix {prefixes[0]!r}" if prefixes[0] else listed([repr(part) for part in within])
    return f"tensor names lose {prefix} to fit {target}{left_out}"


def extra_states(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Return the entries of a state dict that are values of modules' `get_extra_state`, which may be anything."""
    return {name: value for name, value in state_dict.items() if _is_extra_state(name)}


def _is_extra_state(name: str) -> bool:
    return name.rpartition(".")[2] == EXTRA_STATE


def fitting_prefixes(names: Collection[str], wanted: Set[str]) -> list[str]:
    """Return every text, perhaps empty, after which the names that begin with it are exactly the wanted ones.

    Extra state of modules does not count.
    """
    names = [name for name in names if not _is_extra_state(name)]
    wanted = {name for name in wanted if not _is_extra_state(name)}
    if not wanted:
        return []
    if set(names) == wanted:
        return [""]
    needed = {name for name in wanted if not name.endswith(COUNTER)} or wanted
    bare = [_without_within(name, wanted) for name in names]
    shortest = min(needed, key=len)
    likely = {name[: -len(shortest)] for name in bare if name == shortest or name.endswith(f".{shortest}")}
    below = {prefix: {name.removeprefix(prefix) for name in bare if name.startswith(prefix)} for prefix in likely}
    return sorted(prefix for prefix, rest in below.items() if needed <= rest <= wanted)


def matching_names(a: Collection[str], b: Collection[str]) -> dict[str, str]:
    """Return a mapping from names in a to names in b of common tensors, ignoring a prefix of all names in either.

    Tensors outside a wrapper are left out only if the names of the others differ.
    """
    if not (set(a) <= set(b) or set(b) <= set(a)):
        for wanted in (_bare(a), _bare(b)):
            first, second = ({new: old for old, new in fitting_names(names, wanted).items()} for names in (a, b))
            if first.keys() == second.keys():
                return {first[name]: second[name] for name in first}
    return {name: name for name in a if name in set(b)}


def trained_first(entries: Iterable[Entry], name: Callable[[Entry], str] = str) -> list[Entry]:
    """Return entries in their order, with those last whose names are names of copies."""
    return sorted(entries, key=lambda entry: COPY.search(name(entry)) is not None)


def _bare(names: Collection[str]) -> set[str]:
    """Return names without parts that wrappers inserted, and without their common first parts."""
    parts = [_without_within(name, frozenset()).split(".") for name in names]
    shortest = min(map(len, parts), default=1)
    common = next((i for i in range(shortest - 1) if len({each[i] for each in parts}) > 1), shortest - 1)
    return {".".join(each[common:]) for each in parts}


def _without_within(name: str, wanted: Set[str]) -> str:
    """Return a name in its current form and without parts of wrappers of single layers, unless it is wanted."""
    if name in wanted:
        return name
    bare = ".".join(part for part in name.split(".") if part not in WITHIN)
    layer, _, tensor = bare.rpartition(".")
    if tensor[-2:] in WEIGHT_NORM:
        today = ".".join(filter(None, [layer, "parametrizations", tensor[:-2], WEIGHT_NORM[tensor[-2:]]]))
        if any(f".{today}".endswith(f".{name}") for name in wanted):
            return today
    return bare
