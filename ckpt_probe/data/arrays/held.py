"""Splits held in memory, the names of their classes, and what is chosen of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ckpt_probe.data.arrays import shifts, subset
from ckpt_probe.data.samples import ArraySplit
from ckpt_probe.errors import UsageError

CHOICES = ("classes", "per_class", "validation_per_class", "subset_seed", "shift")
"""Arguments that every source of arrays takes beside its own."""


@dataclass(frozen=True)
class Held:
    """Splits by name; class_names: names of the first classes, where they have any."""

    splits: dict[str, ArraySplit]
    class_names: tuple[str, ...] | None = None


def chosen(
    held: Held,
    classes: Sequence[int] | None = None,
    per_class: int | None = None,
    validation_per_class: int | None = None,
    subset_seed: int = 0,
    shift: str | None = None,
) -> Held:
    """Fewer classes, fewer samples, shifted images, in this order: see `subset` and `shifts`."""
    if type(subset_seed) is not int or subset_seed < 0:
        raise UsageError(f"subset_seed: expected a whole number of at least 0, found {subset_seed!r}")
    splits, names = held.splits, held.class_names
    wanted = None if shift is None else shifts.parsed(shift)
    named = None if classes is None else subset.named(splits, classes)
    if per_class is not None or validation_per_class is not None:
        splits = subset.per_class(splits, per_class, validation_per_class, subset_seed, named)
    if named is not None:
        splits = subset.of_classes(splits, named)
        names = None if names is None or max(named) >= len(names) else tuple(names[label] for label in named)
    return Held(splits if wanted is None else shifts.shifted(splits, wanted, subset_seed), names)
