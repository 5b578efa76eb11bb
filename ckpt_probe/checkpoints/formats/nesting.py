"""Where in what a trainer saved the tensors of the model lie, and which mapping of tensors is meant."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_probe.copies import trained_first
from ckpt_probe.errors import DataError, UsageError, listed

DEEPEST = 12
"""Levels below which nothing is looked for."""
OF_TRAINING = re.compile(
    r"(^|_)(optim|optims|optimi[sz]ers?|opt|lr|schedulers?|sched|scaler|rng|callbacks|loops|hooks)(_|$)", re.IGNORECASE
)
"""Names of what trainers keep beside the model, whose tensors are never taken for it."""
OF_MODEL = frozenset(
    {"state_dict", "model", "model_state", "model_state_dict", "net", "network", "params", "module", "weights"}
)
"""Names under which a model's own weights are kept."""
SMALL = 0.01
"""A mapping with a smaller share of the numbers than that of the model's is no second model."""

EXTRA_STATE = "_extra_state"
"""Last part of the name under which torch keeps the value of a module's `get_extra_state`."""

Size = Callable[[Any], int | None]
"""Numbers that a value holds where it is a tensor, None where it is none."""


@dataclass(frozen=True)
class Candidate:
    """A mapping of tensors: its keys from the top, joined by dots ("" for the whole), and its entries.

    extra: values of modules' `get_extra_state` that are no tensors. dropped: names of other entries.
    """

    key: str
    tensors: Mapping[str, Any]
    numbers: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.key or 'the whole'} ({len(self.tensors)} tensors, {self.numbers:,} numbers)"


@dataclass(frozen=True)
class Choice:
    """The mapping that was taken, and the others there are."""

    taken: Candidate
    others: tuple[Candidate, ...]


def choose(tree: Any, size: Size, state_key: str | None = None) -> Choice:
    """The model's tensors within `tree`: at `state_key` where it is given, else the only mapping of tensors.

    An optimizer's state is none; a mapping within another counts with the one that holds more numbers; a mapping with
    less than a hundredth of the numbers of one that has a model's name is told and left out. Raises UsageError where
    there are several, listing them with their sizes, or none at `state_key`; DataError where there is none at all.
    """
    found = list(_candidates(tree, size, "", set(), 0))
    if state_key is not None:
        taken = _named(tree, size, state_key, found)
        return Choice(taken, tuple(other for other in found if other.key != taken.key))
    if not found:
        raise DataError(f"holds no state dict; it has: {_entries(tree)}")
    kept = trained_first(_without_small(found), lambda candidate: candidate.key)
    if len(kept) > 1:
        keys = [str(candidate) for candidate in kept]
        raise UsageError(f"holds several state dicts: {listed(keys)}; choose one with --state-key {kept[0].key}")
    return Choice(kept[0], tuple(other for other in found if other is not kept[0]))


def _candidates(tree: Any, size: Size, key: str, seen: set[int], depth: int) -> Iterator[Candidate]:
    if id(tree) in seen or depth > DEEPEST:
        return
    seen.add(id(tree))
    if isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        pairs = [(str(place), value) for place, value in enumerate(tree)]
        own = None
    elif isinstance(tree, Mapping) and not {"state", "param_groups"} <= set(tree):
        pairs = [(name, value) for name, value in tree.items() if isinstance(name, str)]
        own = _own(tree, size, key)
    else:
        return
    below: list[Candidate] = []
    for name, value in pairs:
        # A layer may be called "opt" too, but its tensors lie beside others, not in a mapping of their own.
        if isinstance(value, Mapping | list | tuple) and not OF_TRAINING.search(name):
            below += _candidates(value, size, f"{key}.{name}" if key else name, seen, depth + 1)
    if own is not None and own.numbers >= sum(candidate.numbers for candidate in below):
        yield own
        return
    yield from below


def _own(tree: Mapping[Any, Any], size: Size, key: str) -> Candidate | None:
    """The tensors that lie in a mapping itself, None where there are none, or scalars alone, such as a loss."""
    sizes = {name: size(value) for name, value in tree.items() if isinstance(name, str)}
    tensors = {name: tree[name] for name, count in sizes.items() if count is not None}
    numbers = sum(count for count in sizes.values() if count is not None)
    if numbers <= len(tensors):
        return None
    others = {name: value for name, value in tree.items() if name not in tensors}
    extra = {name: value for name, value in others.items() if str(name).rpartition(".")[2] == EXTRA_STATE}
    return Candidate(key, tensors, numbers, extra, tuple(str(name) for name in others if name not in extra))


def _without_small(found: list[Candidate]) -> list[Candidate]:
    largest = max(found, key=lambda candidate: candidate.numbers)
    if largest.key.rpartition(".")[2] not in OF_MODEL:
        return found
    return [c for c in found if c.numbers >= SMALL * largest.numbers or c.key.rpartition(".")[2] in OF_MODEL]


def _named(tree: Any, size: Size, state_key: str, found: list[Candidate]) -> Candidate:
    place, rest = _follow(tree, state_key)
    if rest == "":
        own = _own(place, size, state_key) if isinstance(place, Mapping) else None
        below = list(_candidates(place, size, state_key, set(), 0))
        if len(below) == 1:
            return below[0]
        if own is not None:
            return own
    elif isinstance(place, Mapping):
        # The rest of the key may be a prefix of names: one of two networks that were saved as one.
        cut = {name.removeprefix(f"{rest}."): value for name, value in place.items() if _under(name, rest)}
        own = _own(cut, size, state_key)
        if own is not None:
            return own
    there = listed([str(candidate) for candidate in found]) if found else _entries(tree)
    raise UsageError(f"--state-key {state_key}: no state dict there; the file has: {there}")


def _under(name: Any, prefix: str) -> bool:
    return isinstance(name, str) and name.startswith(f"{prefix}.")


def _follow(tree: Any, key: str) -> tuple[Any, str]:
    """What lies at a key of several parts, and the part of it that leads nowhere; a name may have dots in it."""
    if isinstance(tree, list | tuple):
        head, _, rest = key.partition(".")
        if head.isdigit() and int(head) < len(tree):
            return _follow(tree[int(head)], rest) if rest else (tree[int(head)], "")
        return tree, key
    if not isinstance(tree, Mapping):
        return tree, key
    if key in tree:
        return tree[key], ""
    heads = [key[: dot.start()] for dot in re.finditer(r"\.", key)]
    for head in reversed(heads):
        if isinstance(tree.get(head), Mapping | list | tuple):
            return _follow(tree[head], key[len(head) + 1 :])
    return tree, key


def _entries(tree: Any) -> str:
    if not isinstance(tree, Mapping):
        return f"a {type(tree).__name__}"
    return listed([f"{name} ({type(value).__name__})" for name, value in tree.items()]) or "nothing"
