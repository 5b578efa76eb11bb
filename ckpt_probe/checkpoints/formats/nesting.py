"""Find the model's tensors in the nested mappings that a trainer saved."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckpt_probe.errors import DataError, UsageError, listed
from ckpt_probe.wrappers import trained_first

DEEPEST = 12
"""Most levels of nesting that are searched."""
OF_TRAINING = re.compile(
    r"(^|_)(optim|optims|optimi[sz]ers?|opt|lr|schedulers?|sched|scaler|rng|callbacks|loops|hooks)(_|$)", re.IGNORECASE
)
"""Names of the state of training, whose tensors are never those of the model."""
OF_MODEL = frozenset(
    {"state_dict", "model", "model_state", "model_state_dict", "net", "network", "params", "module", "weights"}
)
"""Usual names of a model's weights."""
SMALL = 0.01
"""Share of the model's numbers below which another mapping is not a second model."""

CONTAINERS = (dict, list, tuple, Mapping)
"""Types of values that are searched; dictionaries first, because the check of an abstract class is slow."""

EXTRA_STATE = "_extra_state"
"""Last part of the name of the value of a module's `get_extra_state`."""

Size = Callable[[Any], int | None]
"""Function from a value to its number of entries if it is a tensor, else None."""


@dataclass(frozen=True)
class Candidate:
    """A mapping of tensors.

    Attributes:
        key: Keys from the top to it, joined by dots; "" for the top.
        tensors: Its tensors by name.
        numbers: Sum of the numbers of entries of its tensors.
        extra: Values of modules' `get_extra_state` that are not tensors.
        dropped: Names of the other entries.
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
    """The chosen mapping, and the other candidates."""

    taken: Candidate
    others: tuple[Candidate, ...]


def choose(tree: Any, size: Size, state_key: str | None = None) -> Choice:
    """Choose the model's tensors in a tree of mappings: those at `state_key`, else the only mapping of tensors.

    The state of an optimizer is left out. If a mapping has tensors and nested mappings of tensors, its tensors are the
    candidate if they have at least as many numbers, else the nested mappings are. If the largest candidate has a usual
    name of a model, those with less than a hundredth of its numbers are left out, unless they have a usual name too.

    Args:
        tree: Nested mappings and lists.
        size: Number of entries of a tensor, None for anything else.
        state_key: Keys to the tensors, joined by dots.

    Returns:
        The chosen mapping and the other candidates.

    Raises:
        UsageError: If there are several candidates, or no tensors at `state_key`.
        DataError: If there are no tensors.
    """
    candidates = list(_candidates(tree, size, "", set(), 0))
    if state_key is not None:
        taken = _named(tree, size, state_key, candidates)
        return Choice(taken, tuple(other for other in candidates if other.key != taken.key))
    if not candidates:
        raise DataError(f"holds no state dict; it has: {_entries(tree)}")
    remaining = trained_first(_without_small(candidates), lambda candidate: candidate.key)
    if len(remaining) > 1:
        keys = [str(candidate) for candidate in remaining]
        raise UsageError(f"holds several state dicts: {listed(keys)}; choose one with `state_key={remaining[0].key!r}`")
    return Choice(remaining[0], tuple(other for other in candidates if other is not remaining[0]))


def _candidates(tree: Any, size: Size, key: str, seen: set[int], depth: int) -> Iterator[Candidate]:
    if id(tree) in seen or depth > DEEPEST:
        return
    seen.add(id(tree))
    if isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        pairs = [(str(index), value) for index, value in enumerate(tree)]
        direct = None
    elif isinstance(tree, Mapping) and not {"state", "param_groups"} <= set(tree):
        pairs = [(name, value) for name, value in tree.items() if isinstance(name, str)]
        direct = _direct(tree, size, key)
    else:
        return
    nested: list[Candidate] = []
    for name, value in pairs:
        # A layer may be called "opt" too, but its tensors lie beside others, not in a mapping of their own.
        if isinstance(value, CONTAINERS) and value and not OF_TRAINING.search(name):
            nested += _candidates(value, size, f"{key}.{name}" if key else name, seen, depth + 1)
    if direct is not None and direct.numbers >= sum(candidate.numbers for candidate in nested):
        yield direct
        return
    yield from nested


def _direct(tree: Mapping[Any, Any], size: Size, key: str) -> Candidate | None:
    """Return the tensors in a mapping itself, None if it has none or only scalars, such as a loss."""
    sizes = {name: size(value) for name, value in tree.items() if isinstance(name, str)}
    tensors = {name: tree[name] for name, count in sizes.items() if count is not None}
    numbers = sum(count for count in sizes.values() if count is not None)
    if numbers <= len(tensors):
        return None
    others = {name: value for name, value in tree.items() if name not in tensors}
    extra = {name: value for name, value in others.items() if str(name).rpartition(".")[2] == EXTRA_STATE}
    return Candidate(key, tensors, numbers, extra, tuple(str(name) for name in others if name not in extra))


def _without_small(candidates: list[Candidate]) -> list[Candidate]:
    largest = max(candidates, key=lambda candidate: candidate.numbers)
    if largest.key.rpartition(".")[2] not in OF_MODEL:
        return candidates
    return [c for c in candidates if c.numbers >= SMALL * largest.numbers or c.key.rpartition(".")[2] in OF_MODEL]


def _named(tree: Any, size: Size, state_key: str, candidates: list[Candidate]) -> Candidate:
    entry, rest = _follow(tree, state_key)
    if rest == "":
        direct = _direct(entry, size, state_key) if isinstance(entry, Mapping) else None
        nested = list(_candidates(entry, size, state_key, set(), 0))
        if len(nested) == 1:
            return nested[0]
        if direct is not None:
            return direct
    elif isinstance(entry, Mapping):
        # The rest of the key may be a prefix of names, if two networks were saved as one.
        cut = {name.removeprefix(f"{rest}."): value for name, value in entry.items() if _under(name, rest)}
        direct = _direct(cut, size, state_key)
        if direct is not None:
            return direct
    entries = listed([str(candidate) for candidate in candidates]) if candidates else _entries(tree)
    raise UsageError(f"`state_key={state_key!r}`: no state dict there; the file has: {entries}")


def _under(name: Any, prefix: str) -> bool:
    return isinstance(name, str) and name.startswith(f"{prefix}.")


def _follow(tree: Any, key: str) -> tuple[Any, str]:
    """Return the entry at a key of several parts, and the rest of the key that leads nowhere; names may have dots."""
    if isinstance(tree, list | tuple):
        head, _, rest = key.partition(".")
        if re.fullmatch("[0-9]{1,9}", head) and int(head) < len(tree):
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
