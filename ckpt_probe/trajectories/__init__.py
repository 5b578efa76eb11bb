"""Series of checkpoints in weight space, without model and data: audit, motion and spectra of weight matrices."""

from typing import TYPE_CHECKING

from ckpt_probe.lazy import lazy_names

if TYPE_CHECKING:
    from ckpt_probe.trajectories.records import weights
    from ckpt_probe.trajectories.series import audit_series

__all__ = ["audit_series", "weights"]

__getattr__ = lazy_names(__name__, {"audit_series": "series", "weights": "records"})
