"""A model by name, its classifier, and its weights from a checkpoint."""

from ckpt_probe.models.classifier import evaluating, find_classifier, logits_of, run_once, unknown_index
from ckpt_probe.models.device import choose_device, on_device
from ckpt_probe.models.fitting import load_weights, require_classes, unwrapped
from ckpt_probe.models.sources import build_model, functions_named, model_arguments
from ckpt_probe.models.two_source import TwoSource

__all__ = [
    "TwoSource",
    "build_model",
    "choose_device",
    "evaluating",
    "find_classifier",
    "functions_named",
    "load_weights",
    "logits_of",
    "model_arguments",
    "on_device",
    "require_classes",
    "run_once",
    "unknown_index",
    "unwrapped",
]
