"""What a step minimises: the task's loss, and matrix information losses times their λ."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from ckpt_probe.config import LossSettings
from ckpt_probe.errors import UsageError
from ckpt_probe.models import Head, TwoSource, find_head, logits_of
from ckpt_probe.training.contrastive import contrastive_loss
from ckpt_probe.training.losses import cma, hdr_loss, mir_loss

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(inputs (n, …), labels (n,)) → (loss, logits (n, C))."""


def build_objective(settings: LossSettings, model: nn.Module, inputs: Tensor) -> Objective:
    """The objective that `settings` describe for a model; inputs (n, …) serve to find its classifier.

    Raises UsageError where a two-source model is needed and this is none, or MIR and HDR are asked beside CMA, or of a
    model whose output is not its classifier's own.
    """
    two_sources = settings.task == "contrastive" or settings.cma > 0
    if two_sources and not isinstance(model, TwoSource):
        raise UsageError("[loss] cma and the contrastive task need a model with two encoders, such as two_source")
    if two_sources and isinstance(model, TwoSource):
        if settings.mir or settings.hdr:
            raise UsageError("[loss] mir and hdr cannot be combined with cma or the contrastive task")
        return lambda inputs, labels: _of_two_sources(settings, model, inputs, labels)
    if settings.mir or settings.hdr:
        return _Tapped(settings, model, find_head(model, inputs))
    return lambda inputs, labels: _plain(settings, model, inputs, labels)


def _plain(settings: LossSettings, model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits_of(model(inputs))
    return F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing), logits


def _of_two_sources(settings: LossSettings, model: TwoSource, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    images = model.encode_images(inputs)
    captions = model.encode_captions(labels)
    logits = model.scale() * images @ model.anchors().T
    if settings.task == "contrastive":
        loss = contrastive_loss(images, captions, labels, model.scale())
    else:
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    return loss + settings.cma * cma(images, labels, captions, labels) if settings.cma else loss, logits


class _Tapped:
    """Cross-entropy, and MIR and HDR of the classifier's inputs and its weight rows."""

    def __init__(self, settings: LossSettings, model: nn.Module, head: Head) -> None:
        if not head.settled:
            raise UsageError(f"[loss] mir and hdr need a model that returns the output of its classifier; {head.why}")
        self._settings = settings
        self._model = model
        self._head = head

    def __call__(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        rows = self._head.tapped(self._model, inputs)
        loss = F.cross_entropy(rows.logits, labels, label_smoothing=self._settings.label_smoothing)
        weights, _ = self._head.parameters(self._model)
        if self._settings.mir:
            loss = loss + self._settings.mir * mir_loss(rows.features, labels, weights)
        if self._settings.hdr:
            loss = loss + self._settings.hdr * hdr_loss(rows.features, labels, weights)
        return loss, rows.logits
