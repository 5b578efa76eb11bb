"""Series of checkpoints in weight space, without model and data: audit, motion and spectra of weight matrices."""

from typing import TYPE_CHECKING

from ckpt_probe.lazy import lazy_names

if TYPE_CHECKING:
    from ckpt_probe.trajectories.audit import Audit
    from ckpt_probe.trajectories.layout import Finding, block_of
    from ckpt_probe.trajectories.records import weights
    from ckpt_probe.trajectories.series import audit_series

__all__ = ["Audit", "Finding", "audit_series", "block_of", "weights"]

_HOMES = {
    "Audit": "audit",
    "Finding": "layout",
    "audit_series": "series",
    "block_of": "layout",
    "weights": "records",
}

__getattr__ = lazy_names(__name__, _HOMES)
