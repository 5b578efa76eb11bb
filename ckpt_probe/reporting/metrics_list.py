"""List of all metrics by family, for `analyze --list-metrics`."""

from ckpt_probe.moments.registry import DEFAULT, FAMILIES, GROUPS, Metric, all_metrics

HEAD = "Families of metrics for `only=`, with their cost for N samples of D features and C classes:"


def metrics_list() -> str:
    """Return all families with their costs and metrics: name, meaning, unit, direction, value at collapse, source."""
    metrics = all_metrics()
    blocks = []
    for family in FAMILIES:
        optional = "" if family.name in DEFAULT else " (only on request)"
        lines = [f"{family.name}: {family.meaning}{optional}", f"  cost: {family.cost}"]
        blocks.append("\n".join([*lines, *(_line(metric) for metric in metrics if metric.family == family.name)]))
    names = {family.name for family in FAMILIES}
    for name in dict.fromkeys(metric.family for metric in metrics if metric.family not in names):
        lines = [_line(metric) for metric in metrics if metric.family == name]
        blocks.append("\n".join([f"{name}: metrics of an installed package", *lines]))
    groups = [f"{name}: short for {','.join(families)}" for name, families in GROUPS.items()]
    return "\n\n".join([HEAD, *blocks, *groups])


def _line(metric: Metric) -> str:
    value = metric.at_collapse
    at_collapse = f"{value:g} at collapse" if isinstance(value, float) else str(value or "")
    facts = ", ".join(filter(None, (metric.unit, metric.direction, at_collapse, metric.source)))
    return f"  {metric.name:28} {metric.meaning}" + (f" [{facts}]" if facts else "")
