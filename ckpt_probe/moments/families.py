"""Families of metrics: what can be asked for by name, and what each costs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ckpt_probe.errors import UsageError, listed


@dataclass(frozen=True)
class Family:
    """Metrics that are computed together. cost: multiplications, for N rows of D features and C classes."""

    name: str
    meaning: str
    cost: str


JOINT = "sampled with an error bar where that side is over 12,000 or the memory budget"
FAMILIES = (
    Family("quality", "accuracy and loss", "N·C·D; none where logits or predictions are stored"),
    Family(
        "class",
        "entropies, MIR and HDR of class means and weights",
        f"N·D + C·D·min(C, D); joint entropy: a side of min(C, D·min(C, D)), cubed, {JOINT}",
    ),
    Family(
        "sample",
        "entropies, MIR and HDR of the features of all samples and the weight rows of their labels",
        f"N·D² + D³; joint entropy: a side of min(N, D·min(C, D)), cubed, {JOINT}",
    ),
    Family("within", "entropy of the rows of each class", "N·D² + C·D³ at most"),
    Family("nc1", "NC1, CDNV and separation", "N·D² + C·D·min(C, D) + C²·D/2"),
    Family("nc2", "NC2, and its generalisation to more classes than dimensions", "N·D + C²·D"),
    Family("nc3", "NC3 and its uniformity", "N·D + C·D"),
    Family("nc4", "NC4 and nearest class means", "N·C·D in a second pass; twice where no predictions are known"),
    Family("centred", "sample level of features less their mean", "that of sample, in two more passes"),
    Family("nc5", "class means against data of other classes, named by --outside", "N·D + C·D"),
)
GROUPS = {"nc": ("nc1", "nc2", "nc3", "nc4")}
"""Names for several families at once."""

OF_SCATTER = frozenset({"nc1"})
OF_UNIT_ROWS = frozenset({"sample", "within"})
"""Families that need products of centred rows, and of unit rows."""

ON_REQUEST = frozenset({"centred", "nc5"})
"""Families that are computed only where they are asked for."""

DEFAULT = tuple(family.name for family in FAMILIES if family.name not in ON_REQUEST)


def chosen(names: Iterable[str] | None, others: Sequence[str] = ()) -> frozenset[str]:
    """The families that these names mean, the usual ones for None. others: names that are families too.

    Raises UsageError for an unknown name, and for none at all.
    """
    if names is None:
        return frozenset((*DEFAULT, *others))
    known, found = [*(family.name for family in FAMILIES), *others], set()
    for name in names:
        if name not in GROUPS and name not in known:
            raise UsageError(f"only: {name!r} is not a family of metrics{_hint(name, [*GROUPS, *known])}")
        found.update(GROUPS.get(name, (name,)))
    if not found:
        raise UsageError(f"only: expected at least one family of metrics: {', '.join([*GROUPS, *known])}")
    return frozenset(found)


def _hint(name: str, known: list[str]) -> str:
    of_metric = name.partition(".")[0]
    close = [of_metric] if of_metric in known else get_close_matches(name, known, n=1)
    guess = f"; did you mean {close[0]}?" if close else "."
    return f"{guess} Families: {listed(known, 20)}"
