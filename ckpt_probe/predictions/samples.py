"""Find the samples behind the rows of a dump in data that the caller names: their names and small pictures of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ckpt_probe.dumps import open_dump
from ckpt_probe.errors import CkptProbeError, DataError
from ckpt_probe.opening import load_data
from ckpt_probe.predictions.series import Predictions

if TYPE_CHECKING:
    from ckpt_probe.data import Split

SIDE = 32
"""Largest height and width of a picture, in pixels."""


def open_samples(data: str, arguments: Mapping[str, Any] | None, predictions: Predictions) -> "Split":
    """Load the samples behind the rows of a run by the name of the data that the caller states.

    Labels may be numbered otherwise than in the dumps, but each class of the data must be one class of the dumps.

    Args:
        data: Name of the data, as for `extract --data`.
        arguments: Arguments of the data; None for those of the dump if it names the same data.
        predictions: Predictions of one split of the run.

    Raises:
        UsageError: If the name or an argument is unknown.
        DataError: If the files do not contain such data, or its samples are not the rows of the dumps in order.
    """
    dump, split = predictions.paths[0], predictions.split
    with open_dump(dump) as opened:
        provenance, view = opened.provenance, opened[split]
        missing, unreadable = view.not_stored, view.unreadable
    if missing or unreadable:
        reason = f"{missing:,} rows are not stored" if missing else f"{unreadable:,} samples could not be read"
        raise DataError(f"{dump}: {split}: {reason}, so it is unknown which sample belongs to which row")
    if arguments is None and provenance is not None and provenance.data == data:
        arguments = provenance.data_arguments
    samples, rows = load_data(data, arguments, workers=0).split(split), predictions.predicted.shape[1]
    if len(samples) < rows:
        raise DataError(f"{data}: split {split} has {len(samples):,} samples, but the dumps have {rows:,} rows")
    if predictions.labels is not None:
        pairs = np.unique(np.stack([predictions.labels, samples.labels.numpy()[:rows]]), axis=1)
        if any(len(np.unique(side)) < pairs.shape[1] for side in pairs):
            raise DataError(f"{data}: split {split} has other labels than the rows of the dumps: other samples")
    return samples


def pictures(samples: "Split", indices: Sequence[int]) -> np.ndarray:
    """Return small pictures of some samples, whose values are spread over the range from black to white.

    Args:
        samples: Split with inputs that are images, shape (C, H, W).
        indices: Indices of the samples.

    Returns:
        Pictures, shape (n, h, w, 3), uint8, with h and w at most `SIDE`.

    Raises:
        DataError: If a sample is not an image, or cannot be read.
    """
    small = []
    for index in indices:
        try:
            inputs, _ = samples.batch(torch.tensor([index]))
        except CkptProbeError as error:
            raise DataError(f"sample {index}: no picture: {error}") from error
        if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] not in (1, 3) or not len(inputs):
            raise DataError("the inputs are no images of 1 or 3 channels, so no picture is shown")
        small.append(_small(inputs[0].to(torch.float32)))
    if len({picture.shape for picture in small}) > 1:
        small = [_small(F.interpolate(picture[None], (SIDE, SIDE))[0]) for picture in small]
    return torch.stack([_bytes(picture) for picture in small]).numpy() if small else np.empty((0, 1, 1, 3), np.uint8)


def _small(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    ratio = min(1.0, SIDE / max(height, width))
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    return F.adaptive_avg_pool2d(image, size)


def _bytes(image: Tensor) -> Tensor:
    finite = torch.nan_to_num(image)
    low, high = finite.min(), finite.max()
    spread = (finite - low) / (high - low if high > low else 1)
    return (255 * spread).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0)
