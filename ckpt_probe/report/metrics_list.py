"""All metrics by family, for a person who chooses among them."""

from ckpt_probe.analysis import ENTRIES, Entry
from ckpt_probe.moments.families import DEFAULT, FAMILIES, GROUPS

HEAD = "Families of metrics for --only, with their cost for N samples of D features and C classes:"


def metrics_list() -> str:
    """Each family with its cost, below it its metrics: name, unit, direction, value at collapse, source, meaning."""
    blocks = []
    for family in FAMILIES:
        asked = "" if family.name in DEFAULT else " (only where asked for)"
        lines = [f"{family.name}: {family.meaning}{asked}", f"  cost: {family.cost}"]
        lines += [f"  {_line(entry)}" for entry in ENTRIES if entry.family == family.name]
        blocks.append("\n".join(lines))
    groups = [f"{name}: short for {','.join(families)}" for name, families in GROUPS.items()]
    return "\n\n".join([HEAD, *blocks, *groups])


def _line(entry: Entry) -> str:
    value = entry.reference
    at_collapse = f"{value:g} at collapse" if isinstance(value, float) else str(value or "")
    facts = ", ".join(filter(None, (entry.unit, entry.direction, at_collapse, entry.source)))
    return f"{entry.name:28} {entry.meaning}" + (f" [{facts}]" if facts else "")
