"""Train networks with checkpoints, and prune checkpoints."""

from ckpt_probe.training.loop import TrainingSummary, train
from ckpt_probe.training.pruned_series import PrunedLevel, PruneSummary, prune
from ckpt_probe.training.pruning import prune_state
from ckpt_probe.training.run import require_free
