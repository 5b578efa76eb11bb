"""Open and write checkpoints, and list those of a run; the only package that knows safetensors and pickles."""

from typing import TYPE_CHECKING

from ckpt_probe.lazy import lazy_names
from ckpt_probe.series import Member

if TYPE_CHECKING:
    from ckpt_probe.checkpoints.header import CheckpointMetadata, library_versions
    from ckpt_probe.checkpoints.reading import Checkpoint, State, open_checkpoint
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

__getattr__ = lazy_names(
    __name__,
    {
        "CheckpointMetadata": "header",
        "library_versions": "header",
        "Checkpoint": "reading",
        "State": "reading",
        "open_checkpoint": "reading",
        "LikelyHead": "recognition",
        "likely_heads": "recognition",
        "quantised": "recognition",
        "Arrivals": "series",
        "RepeatedWeights": "series",
        "fingerprint": "series",
        "is_run": "series",
        "is_series": "series",
        "open_series": "series",
        "step_of": "series",
        "unopened_member": "series",
        "CheckpointWriter": "writing",
        "save_checkpoint": "writing",
    },
)
