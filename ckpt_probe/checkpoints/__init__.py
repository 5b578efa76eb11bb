"""Files of tensors: open, write, and a run's series of them. The only place that knows safetensors and pickles."""

from ckpt_probe.checkpoints.arrivals import Arrivals
from ckpt_probe.checkpoints.heads import LikelyHead, likely_heads
from ckpt_probe.checkpoints.metadata import CheckpointMetadata, library_versions
from ckpt_probe.checkpoints.quantised import quantised
from ckpt_probe.checkpoints.reading import Checkpoint, State, open_checkpoint
from ckpt_probe.checkpoints.series import is_series, open_series, step_of
from ckpt_probe.checkpoints.writing import CheckpointWriter, save_checkpoint
from ckpt_probe.series import Member

__all__ = [
    "Arrivals",
    "Checkpoint",
    "CheckpointMetadata",
    "CheckpointWriter",
    "LikelyHead",
    "Member",
    "State",
    "is_series",
    "library_versions",
    "likely_heads",
    "open_checkpoint",
    "open_series",
    "quantised",
    "save_checkpoint",
    "step_of",
]
