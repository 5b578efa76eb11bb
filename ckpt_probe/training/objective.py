"""Compute the loss of a training step: the loss of the task plus weighted losses of matrix information."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.config import LossSettings
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.models import Head, find_head, logits_of
from ckpt_probe.training.losses import cma, hdr_loss, mir_loss

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(inputs (n, …), labels (n,)) → (loss, logits (n, C))."""


@runtime_checkable
class TwoSource(Protocol):
    """A model with two encoders, which maps images and descriptions of their classes to unit rows of one width."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit rows (n, features) for images (n, …)."""
        ...

    def encode_captions(self, classes: Tensor, which: Tensor | None = None) -> Tensor:
        """Return unit rows (n, features) of one description of each class.

        Args:
            classes: Classes, shape (n,).
            which: Index of the description within its class, shape (n,); None to let the model choose.
        """
        ...

    def anchors(self) -> Tensor:
        """Return one unit row per class, shape (classes, features)."""
        ...

    def scale(self) -> Tensor:
        """Return the factor from cosines to logits, the inverse of a temperature, as a scalar."""
        ...


def build_objective(settings: LossSettings, model: nn.Module, inputs: Tensor) -> Objective:
    """Return the function that computes the configured loss of a model.

    Args:
        settings: Task and weights of the losses.
        model: Model to train.
        inputs: Inputs (n, …) with which the classifier is found.

    Raises:
        UsageError: If CMA or the contrastive task is set and the model is not a `TwoSource`, MIR or HDR is set beside
            them, or MIR or HDR is set for a model that does not return the output of its classifier.
    """
    if settings.task == "contrastive" or settings.cma > 0:
        if not isinstance(model, TwoSource):
            raise UsageError("[loss] cma and the contrastive task need a model with two encoders, see `TwoSource`")
        if settings.mir or settings.hdr:
            raise UsageError("[loss] mir and hdr cannot be combined with cma or the contrastive task")
        return lambda inputs, labels: _two_encoders(settings, model, inputs, labels)
    if settings.mir or settings.hdr:
        head = find_head(model, inputs)
        if not head.settled:
            raise UsageError(f"[loss] mir and hdr need a model that returns the output of its classifier; {head.why}")
        return lambda inputs, labels: _with_features(settings, model, head, inputs, labels)
    return lambda inputs, labels: _plain(settings, model, inputs, labels)


def contrastive_loss(image_features: Tensor, text_features: Tensor, labels: Tensor, scale: Tensor | float) -> Tensor:
    """Compute the symmetric cross-entropy of scaled cosines, in which rows of one label share the target evenly.

    With P(i) the rows of label y_i and s_ij = scale · u_i · v_j, the loss is the mean over i and both directions of
    −(1/|P(i)|) Σ_{k in P(i)} log softmax_j(s_ij)_k (Yang et al. 2022, UniCL). If all labels differ, it is the loss of
    CLIP (Radford et al. 2021).

    Args:
        image_features: Unit rows u, shape (n, features).
        text_features: Unit rows v, shape (n, features); row i has the class of image i.
        labels: Classes, shape (n,), int64.
        scale: Factor from cosines to logits.

    Returns:
        A scalar, in nats.

    Raises:
        DataError: For other shapes.
    """
    if image_features.shape != text_features.shape or image_features.shape[:1] != labels.shape:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (image_features, text_features, labels))
        raise DataError(f"contrastive loss: expected (n, features) twice and labels (n,), found {shapes}")
    logits = scale * image_features @ text_features.T
    equal = (labels[:, None] == labels).to(logits.dtype)
    targets = equal / equal.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def _plain(settings: LossSettings, model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits_of(model(inputs))
    return F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing), logits


def _two_encoders(settings: LossSettings, model: TwoSource, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    images = model.encode_images(inputs)
    captions = model.encode_captions(labels)
    logits = model.scale() * images @ model.anchors().T
    if settings.task == "contrastive":
        loss = contrastive_loss(images, captions, labels, model.scale())
    else:
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    return loss + settings.cma * cma(images, labels, captions, labels) if settings.cma else loss, logits


def _with_features(
    settings: LossSettings, model: nn.Module, head: Head, inputs: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute cross-entropy, and MIR and HDR of the classifier's inputs and its weight rows."""
    rows = head.tapped(model, inputs)
    loss = F.cross_entropy(rows.logits, labels, label_smoothing=settings.label_smoothing)
    weights, _ = head.parameters(model)
    if settings.mir:
        loss = loss + settings.mir * mir_loss(rows.features, labels, weights)
    if settings.hdr:
        loss = loss + settings.hdr * hdr_loss(rows.features, labels, weights)
    return loss, rows.logits
