"""Find events of runs and the order of their onsets, each with its uncertainty."""

from ckpt_probe.findings.findings import Findings, events, findings_of

__all__ = ["Findings", "events", "findings_of"]
