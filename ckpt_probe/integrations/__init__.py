"""Record metrics during training: in a plain loop, Hugging Face's Trainer or Lightning; each is imported when used."""

from typing import TYPE_CHECKING

from ckpt_probe.lazy import lazy_names

if TYPE_CHECKING:
    from ckpt_probe.integrations.hugging_face import TrainerProbe
    from ckpt_probe.integrations.lightning import LightningProbe
    from ckpt_probe.integrations.plain import Probe

__all__ = ["LightningProbe", "Probe", "TrainerProbe"]

__getattr__ = lazy_names(__name__, {"LightningProbe": "lightning", "Probe": "plain", "TrainerProbe": "hugging_face"})
