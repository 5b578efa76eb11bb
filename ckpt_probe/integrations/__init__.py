"""Record metrics during training: plain loops, Hugging Face's Trainer, Lightning, torchmetrics; loaded when used."""

from typing import TYPE_CHECKING

from ckpt_probe.lazy import lazy_names

if TYPE_CHECKING:
    from ckpt_probe.integrations.hugging_face import TrainerProbe
    from ckpt_probe.integrations.lightning import LightningProbe
    from ckpt_probe.integrations.plain import Probe
    from ckpt_probe.integrations.torchmetrics import RecordMetric

__all__ = ["LightningProbe", "Probe", "RecordMetric", "TrainerProbe"]

__getattr__ = lazy_names(
    __name__,
    {"LightningProbe": "lightning", "Probe": "plain", "RecordMetric": "torchmetrics", "TrainerProbe": "hugging_face"},
)
