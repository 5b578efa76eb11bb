"""Record metrics during training: plain loops, Hugging Face's Trainer, Lightning, torchmetrics; loaded when used."""

from ckpt_probe.integrations.hugging_face import TrainerProbe as TrainerProbe
from ckpt_probe.integrations.lightning import LightningProbe as LightningProbe
from ckpt_probe.integrations.plain import Probe as Probe
from ckpt_probe.integrations.torchmetrics import RecordMetric as RecordMetric
