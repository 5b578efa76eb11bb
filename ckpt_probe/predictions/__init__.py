"""Read from the predictions in dumps which examples were learned when, and how much networks disagree."""

from ckpt_probe.predictions.examples import examples
from ckpt_probe.predictions.matrices import function_similarity
from ckpt_probe.predictions.series import Predictions, read_predictions

__all__ = ["Predictions", "examples", "function_similarity", "read_predictions"]
