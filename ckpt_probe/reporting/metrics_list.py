"""List of all metrics by family, for `analyze --list-metrics`."""

from ckpt_probe.analysis import ENTRIES, Entry
from ckpt_probe.moments.families import DEFAULT, FAMILIES, GROUPS

HEAD = "Families of metrics for --only, with their cost for N samples of D features and C classes:"


def metrics_list() -> str:
    """Return all families with their costs and metrics: name, meaning, unit, direction, value at collapse, source."""
    blocks = []
    for family in FAMILIES:
        optional = "" if family.name in DEFAULT else " (only on request)"
        lines = [f"{family.name}: {family.meaning}{optional}", f"  cost: {family.cost}"]
        lines += [f"  {_line(entry)}" for entry in ENTRIES if entry.family == family.name]
        blocks.append("\n".join(lines))
    groups = [f"{name}: short for {','.join(families)}" for name, families in GROUPS.items()]
    return "\n\n".join([HEAD, *blocks, *groups])


def _line(entry: Entry) -> str:
    value = entry.reference
    at_collapse = f"{value:g} at collapse" if isinstance(value, float) else str(value or "")
    facts = ", ".join(filter(None, (entry.unit, entry.direction, at_collapse, entry.source)))
    return f"{entry.name:28} {entry.meaning}" + (f" [{facts}]" if facts else "")
