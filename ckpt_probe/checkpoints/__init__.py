"""Open and write checkpoints, and list those of a run; the only package that knows safetensors and pickles."""

from ckpt_probe.checkpoints.checkpoint import Checkpoint, State
from ckpt_probe.checkpoints.formats import open_checkpoint
from ckpt_probe.checkpoints.metadata import CheckpointMetadata, library_versions
from ckpt_probe.checkpoints.recognition import LikelyHead, likely_heads, quantised
from ckpt_probe.checkpoints.series import (
    Arrivals,
    RepeatedWeights,
    fingerprint,
    is_run,
    is_series,
    open_series,
    step_of,
    unopened_member,
)
from ckpt_probe.checkpoints.writing import CheckpointWriter, save_checkpoint
from ckpt_probe.series import Member
