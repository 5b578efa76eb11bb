"""Series of checkpoints in weight space, without model and data: audit, motion and spectra of weight matrices."""

from ckpt_probe.trajectories.records import weights as weights
from ckpt_probe.trajectories.series import audit_series as audit_series
