"""The training stage."""

from ckpt_probe.training.loop import TrainingSummary, train

__all__ = ["TrainingSummary", "train"]
